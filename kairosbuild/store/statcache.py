"""Source file → digest, without reading the file when nothing about it has changed.

An entry holds (dev, inode, size, mtime_ns, ctime_ns, mode). It is made only when the file, as it was
hashed, was older than a tick of the file system's clock: a file written again within one tick looks
the same, and git calls the entry of such a file racy.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.store.cas import hash_handle

_MAGIC = b"kbuild stat cache 1\n"
_SUM = 32
_FACTS = struct.Struct("<QQQqqI")  # dev, inode, size, mtime_ns, ctime_ns, mode
_ROW = _FACTS.size + 32  # with the sha256
_FINE, _COARSE = (
    20_000_000,
    2_000_000_000,
)  # nanoseconds: a kernel's tick, a coarse file system's
_TRIES = 5


class StatCache:
    """The cache in one file at `path`. Ask from one thread at a time a path; `save` when done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._packed, self._rows = _load(path)
        self._fresh: dict[str, tuple[bytes, Blob]] = {}

    def digest(self, path: str) -> Blob:
        """What the regular file at this absolute path holds; read only if no entry tells.

        Raises InputError `not-a-file`, NodeError `source-changing`, and OSError where it cannot be read.
        """
        return self.known(path, os.lstat(path)) or self._hash(path)

    def known(self, path: str, status: os.stat_result) -> Blob | None:
        """The digest of a file with this `lstat`, if the cache can tell without reading it."""
        row = self._rows.get(path)
        if row is not None and self._packed[row : row + _FACTS.size] == _facts(status):
            sha = self._packed[row + _FACTS.size : row + _ROW]
            return Blob("sha256:" + sha.hex(), status.st_size)
        facts, blob = self._fresh.get(path, (b"", None))
        return blob if facts == _facts(status) else None

    def save(self) -> None:
        """Write the cache if something was hashed since. Losing it loses time only."""
        if self._fresh:
            data = _dump(dict(self._entries()))
            write_bytes(self._path, data)
            self._packed, self._rows = _parse(data)
            self._fresh = {}

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
                if _settled(after, hashed):
                    self._fresh[path] = _facts(after), blob
                return blob
        raise NodeError(
            f"{path} keeps changing while it is read", reason="source-changing", hint="stop what writes to it"
        )

    def _entries(self) -> Iterator[tuple[str, bytes]]:
        """Every entry packed; files that are gone are left out."""
        for path, row in self._rows.items():
            if path not in self._fresh and os.path.lexists(path):
                yield path, self._packed[row : row + _ROW]
        for path, (facts, blob) in self._fresh.items():
            yield path, facts + bytes.fromhex(blob.hex)


def _facts(status: os.stat_result) -> bytes:
    return _FACTS.pack(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def _settled(status: os.stat_result, hashed: int) -> bool:
    """Whether the file had stopped being young when it was hashed."""
    whole = status.st_mtime_ns % 1_000_000_000 == 0 == status.st_ctime_ns % 1_000_000_000
    return max(status.st_mtime_ns, status.st_ctime_ns) + (_COARSE if whole else _FINE) < hashed


def _load(path: Path) -> tuple[bytes, dict[str, int]]:
    """The packed entries and where each path's begins; nothing where the file is missing or damaged."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return b"", {}


def _parse(data: bytes) -> tuple[bytes, dict[str, int]]:
    head, body = data[: len(_MAGIC) + _SUM], data[len(_MAGIC) + _SUM :]
    if head != _MAGIC + hashlib.sha256(body).digest():
        return b"", {}
    end = int.from_bytes(body[:8], "little") * _ROW
    names = body[8 + end :].decode("utf-8", "surrogateescape").split("\0") if end else []
    return body[8 : 8 + end], dict(zip(names, range(0, end, _ROW), strict=True))


def _dump(entries: dict[str, bytes]) -> bytes:
    names = "\0".join(entries).encode("utf-8", "surrogateescape")
    body = b"".join((len(entries).to_bytes(8, "little"), *entries.values(), names))
    return _MAGIC + hashlib.sha256(body).digest() + body
