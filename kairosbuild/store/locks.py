"""Single flight: one lock a key, across threads and processes, gone when its holder is.

A lock is an `flock` on a file named after the key. The holder removes the file before it lets go, and
whoever waited on a removed file notices and starts over: the folder never grows.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Locks:
    """Locks by key, as files under `root`. Not re-entrant. What was looked up before: look again inside."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        os.makedirs(self._root, exist_ok=True)

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Wait until nobody else holds this key, and hold it for the block."""
        handle = self._acquire(key, fcntl.LOCK_EX)
        assert handle is not None
        try:
            yield
        finally:
            self._release(handle, key)

    @contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Hold this key if nobody does, without waiting; yields whether it was got."""
        handle = self._acquire(key, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                self._release(handle, key)

    def clean(self) -> int:
        """Remove the files that killed holders left; returns how many."""
        count = 0
        for entry in os.scandir(self._root):
            with suppress(FileNotFoundError, BlockingIOError):
                handle = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_still(handle, entry.path):
                        os.unlink(entry.path)
                        count += 1
                finally:
                    os.close(handle)
        return count

    def _acquire(self, key: str, how: int) -> int | None:
        path = self._path(key)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, how)
                if _is_still(handle, path):
                    return handle
            except BlockingIOError:
                os.close(handle)
                return None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _release(self, handle: int, key: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path(key))
        os.close(handle)

    def _path(self, key: str) -> str:
        return f"{self._root}/{hashlib.sha256(key.encode()).hexdigest()[:40]}"


def _is_still(handle: int, path: str) -> bool:
    """Whether the open file is the one of that name: its former holder may have removed it."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(handle)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
