"""dm-verity: a hash tree appended behind a file's data, so that a kernel checks each block as it is read.

The format is `veritysetup format`'s type 1 with sha256, blocks of 4096 bytes and no salt: a layer's
root hash is then a function of its bytes alone, the same on every machine.
<https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity>

    data (padded to a block) · superblock (one block) · top level … lowest level
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.errors import KbuildError

BLOCK = 4096
_READ = 256 * BLOCK
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")


@dataclass(frozen=True, slots=True)
class Verity:
    """A sealed file: `root_hash` (64 hex digits), and `hash_offset`, where data ends and the tree begins."""

    root_hash: str
    hash_offset: int

    @property
    def table(self) -> str:
        """What the device-mapper target needs behind its two devices."""
        blocks = self.hash_offset // BLOCK
        return f"{BLOCK} {BLOCK} {blocks} {blocks + 1} sha256 {self.root_hash} -"


def append(path: Path, identity: uuid.UUID) -> Verity:
    """Pad this file to whole blocks and append its hash tree. `identity` names the tree for people."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.write(bytes(-size % BLOCK))
        offset = size + -size % BLOCK
        file.seek(0)
        root, levels = _tree(file, offset)
        file.seek(offset)
        file.write(_superblock(identity, offset // BLOCK))
        for level in reversed(levels):
            file.write(level)
    return Verity(root.hex(), offset)


def check(path: Path, verity: Verity) -> None:
    """Read everything and raise `verity-mismatch` unless data and tree are those of the root hash."""
    with path.open("rb") as file:
        root, levels = _tree(file, verity.hash_offset)
        file.seek(verity.hash_offset + BLOCK)
        stored = file.read()
    if root.hex() != verity.root_hash or stored != b"".join(reversed(levels)):
        raise KbuildError(
            f"{path.name} is not what its root hash {verity.root_hash} says",
            reason="verity-mismatch",
            hint="the file is damaged; build or fetch it again",
        )


def _tree(file: BinaryIO, length: int) -> tuple[bytes, list[bytes]]:
    """The root digest, and the levels lowest first, each padded to whole blocks."""
    digests = b"".join(_digests_of_file(file, length))
    levels = []
    while len(digests) > 32:
        level = digests + bytes(-len(digests) % BLOCK)
        levels.append(level)
        digests = b"".join(
            hashlib.sha256(level[at : at + BLOCK]).digest() for at in range(0, len(level), BLOCK)
        )
    return digests, levels


def _digests_of_file(file: BinaryIO, length: int) -> Iterator[bytes]:
    sha256 = hashlib.sha256
    while length > 0:
        chunk = memoryview(file.read(min(_READ, length)))
        if not chunk:
            raise KbuildError("the file ends before its hash tree begins", reason="verity-mismatch")
        length -= len(chunk)
        for at in range(0, len(chunk), BLOCK):
            yield sha256(chunk[at : at + BLOCK]).digest()


def _superblock(identity: uuid.UUID, blocks: int) -> bytes:
    head = _SUPERBLOCK.pack(b"verity\0\0", 1, 1, identity.bytes, b"sha256", BLOCK, BLOCK, blocks, 0, b"")
    return head.ljust(BLOCK, b"\0")
