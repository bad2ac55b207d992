"""sha256 beside the transfer: one piece is hashed while the next one moves."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_LARGE = 4 << 20  # bytes; hashing less than this aside costs more than it saves


class Hashing:
    """The hash of `size` bytes that come piece by piece."""

    def __init__(self, size: int) -> None:
        self._sha = hashlib.sha256()
        self._aside = size > _LARGE
        self._last: Future[None] | None = None
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        """More of it. Waits for the piece before, so that pieces keep their order and few are held."""
        self.size += len(data)
        if not self._aside:
            self._sha.update(data)
            return
        self.settle()
        self._last = _crew().submit(self._sha.update, data)

    def digest(self) -> str:
        """What it comes to."""
        self.settle()
        return f"sha256:{self._sha.hexdigest()}"

    def settle(self) -> None:
        """Wait until every piece is hashed."""
        if self._last is not None:
            self._last.result()


@cache
def _crew() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(4, thread_name_prefix="hash")
