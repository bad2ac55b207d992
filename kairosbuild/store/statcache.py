"""Source file → digest, without reading the file when nothing about it has changed.

An entry holds (dev, inode, size, mtime_ns, ctime_ns, mode) and when the file was hashed. It is
believed only if the file was by then older than a tick of the file system's clock: a file written
again within one tick looks the same (git calls such an entry racy).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.store.cas import hash_handle

_MAGIC = b"kbuild stat cache 1\n"
_SUM = 32
_ENTRY = struct.Struct("<QQQqqIq32s")  # dev, inode, size, mtime_ns, ctime_ns, mode, hashed_ns, sha256
_FINE, _COARSE = 20_000_000, 2_000_000_000  # nanoseconds: a kernel tick; a second or two where no more is kept
_TRIES = 5

Facts = tuple[int, int, int, int, int, int]


class StatCache:
    """The cache in one file at `path`. Ask from one thread at a time a path; `save` when done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._packed, self._rows = _load(path)
        self._fresh: dict[str, tuple[Facts, int, Blob]] = {}
        self._dirty = False

    def digest(self, path: str) -> Blob:
        """What the regular file at this absolute path holds; it is read only if its entry is not to be believed.

        Raises InputError `not-a-file`, NodeError `source-changing`, and OSError where it cannot be read.
        """
        return self.known(path, os.lstat(path)) or self._hash(path)

    def known(self, path: str, status: os.stat_result) -> Blob | None:
        """The digest of a file with this `lstat`, if the cache can tell without reading it."""
        entry = self._fresh.get(path) or self._unpack(path)
        if entry is None:
            return None
        facts, hashed, blob = entry
        return blob if facts == _facts(status) and _settled(facts, hashed) else None

    def save(self) -> None:
        """Write the cache if something was hashed since. Losing it loses time only."""
        if self._dirty:
            write_bytes(self._path, _dump(dict(self._entries())))
            self._dirty = False

    def _hash(self, path: str) -> Blob:
        for _ in range(_TRIES):
            hashed = time.time_ns()
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path} is not a regular file", reason="not-a-file")
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                blob = hash_handle(handle)
                after = os.fstat(handle)
            finally:
                os.close(handle)
            if _facts(status) == _facts(after) and blob.size == after.st_size:
                self._fresh[path] = (_facts(after), hashed, blob)
                self._dirty = True
                return blob
        raise NodeError(
            f"{path} keeps changing while it is read", reason="source-changing", hint="stop what writes to it"
        )

    def _unpack(self, path: str) -> tuple[Facts, int, Blob] | None:
        row = self._rows.get(path)
        if row is None:
            return None
        *facts, hashed, digest = _ENTRY.unpack_from(self._packed, row * _ENTRY.size)
        dev, inode, size, mtime, ctime, mode = facts
        return (dev, inode, size, mtime, ctime, mode), hashed, Blob("sha256:" + digest.hex(), size)

    def _entries(self) -> Iterator[tuple[str, bytes]]:
        """Every entry packed, the fresh ones last; what no longer exists is left out when there is something to write."""
        for path, row in self._rows.items():
            if path not in self._fresh and os.path.lexists(path):  # noqa: PTH110
                yield path, self._packed[row * _ENTRY.size : (row + 1) * _ENTRY.size]
        for path, (facts, hashed, blob) in self._fresh.items():
            yield path, _ENTRY.pack(*facts, hashed, bytes.fromhex(blob.hex))


def _facts(status: os.stat_result) -> Facts:
    return (
        status.st_dev, status.st_ino, status.st_size,
        status.st_mtime_ns, status.st_ctime_ns, status.st_mode,
    )  # fmt: skip


def _settled(facts: Facts, hashed: int) -> bool:
    """Whether the file had stopped being young when it was hashed."""
    mtime, ctime = facts[3], facts[4]
    tick = _COARSE if mtime % 1_000_000_000 == 0 and ctime % 1_000_000_000 == 0 else _FINE
    return max(mtime, ctime) + tick < hashed


def _load(path: Path) -> tuple[bytes, dict[str, int]]:
    """The packed entries and the row of each path; nothing where the file is missing or damaged."""
    with suppress(OSError, ValueError, struct.error):
        data = path.read_bytes()
        body = data[len(_MAGIC) + _SUM :]
        if data.startswith(_MAGIC) and hashlib.sha256(body).digest() == data[len(_MAGIC) : len(_MAGIC) + _SUM]:
            (count,) = struct.unpack_from("<Q", body)
            names = body[8 + count * _ENTRY.size :].decode("utf-8", "surrogateescape").split("\0") if count else []
            if len(names) == count:
                return body[8 : 8 + count * _ENTRY.size], dict(zip(names, range(count), strict=True))
    return b"", {}


def _dump(entries: dict[str, bytes]) -> bytes:
    names = "\0".join(entries).encode("utf-8", "surrogateescape")
    body = b"".join((struct.pack("<Q", len(entries)), *entries.values(), names))
    return _MAGIC + hashlib.sha256(body).digest() + body
