"""Single flight: one lock a key, across threads and processes, gone when its holder is.

Every key is one byte, chosen by its digest, of one empty file; a lock is an open-file-description
lock on it (fcntl(2), F_OFD_SETLK). The kernel drops it with the descriptor. Nothing is made or
removed for a lock: on ext4 making a file costs more than a small action's whole bookkeeping.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2): type, whence, start, length, process (0 for these locks)
_BITS = 62


class Locks:
    """Locks by key, in a file under `root`. Not re-entrant; look up again inside what was looked up before."""

    def __init__(self, root: Path) -> None:
        os.makedirs(root, exist_ok=True)
        self._file = f"{root}/held"

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Wait until nobody else holds this key, and hold it for the block."""
        handle = self._acquire(key, fcntl.F_OFD_SETLKW)
        assert handle is not None
        try:
            yield
        finally:
            os.close(handle)

    @contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Hold this key if nobody does, without waiting; yields whether it was got."""
        handle = self._acquire(key, fcntl.F_OFD_SETLK)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def _acquire(self, key: str, how: int) -> int | None:
        """A descriptor of its own for each lock: two of one process exclude each other as any two do."""
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.fcntl(handle, how, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _place(key), 1, 0))
        except OSError as problem:
            os.close(handle)
            if how == fcntl.F_OFD_SETLK and problem.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        except BaseException:
            os.close(handle)
            raise
        return handle


def _place(key: str) -> int:
    """The byte that stands for a key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> (64 - _BITS)
