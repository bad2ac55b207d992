"""The root hash of a sealed layer, worked out from its bytes: what its name has to be.

The format is `boot/verity.py`'s (dm-verity 1, sha256, blocks of 4096, no salt); the machine has only its own
code, so the few lines are here once more. `tests/node` holds the two to each other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096
_READ = 256 * BLOCK


def is_intact(path: Path, root_hash: str, hash_offset: int) -> bool:
    """Whether data and hash tree of this file are those of the root hash. Reads all of it."""
    if not path.is_file() or path.stat().st_size <= hash_offset or hash_offset % BLOCK:
        return False
    with path.open("rb") as file:
        levels = [_hashed(file, hash_offset)]
        while len(levels[-1]) > 32:
            padded = levels[-1] + bytes(-len(levels[-1]) % BLOCK)
            levels[-1] = padded
            levels.append(_hashed_bytes(padded))
        root = levels.pop()
        file.seek(hash_offset + BLOCK)
        return root.hex() == root_hash and file.read() == b"".join(reversed(levels))


def _hashed(file: BinaryIO, length: int) -> bytes:
    sha256, found = hashlib.sha256, []
    while length > 0 and (chunk := memoryview(file.read(min(_READ, length)))):
        length -= len(chunk)
        found += [sha256(chunk[at : at + BLOCK]).digest() for at in range(0, len(chunk), BLOCK)]
    return b"".join(found)


def _hashed_bytes(data: bytes) -> bytes:
    return b"".join(hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))
