"""diskcache cut down to bytes in a row: nothing to unpickle, no files beside the database.

Stock diskcache unpickles any row whose mode says so (CVE-2025-69872), reads and deletes any file a row
names, and returns a value file with a flipped bit as if it were whole.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any, NoReturn

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, MODE_RAW, UNKNOWN

SETTINGS = {**DEFAULT_SETTINGS, "eviction_policy": "none", "cull_limit": 0}
"""diskcache keeps what it is given: its own limits know nothing of what a record keeps alive."""


class InlineDisk(diskcache.Disk):  # type: ignore[misc]
    """Text keys, bytes values. Whatever else a row offers is a KeyError."""

    def put(self, key: Any) -> tuple[str, bool]:
        """A text key as it is."""
        if type(key) is not str:
            raise TypeError(f"an action cache key is text, not {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        """A text key as it is; a pickled one is refused."""
        if not raw or type(key) is not str:
            raise KeyError("a row whose key is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = UNKNOWN) -> tuple[int, int, None, Any]:
        """A bytes value, whatever its length, in the row itself."""
        if read or type(value) is not bytes:
            raise TypeError(f"an action cache value is bytes, not {type(value).__name__}")
        return len(value), MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        """The bytes of a row; every other mode is refused."""
        if mode != MODE_RAW or filename is not None or type(value) is not bytes or read:
            raise KeyError("a row that does not hold plain bytes")
        return value

    def filename(self, key: Any = UNKNOWN, value: Any = UNKNOWN) -> NoReturn:
        """Never: values live in their rows."""
        raise TypeError("the action cache keeps no files")

    def remove(self, file_path: str) -> None:
        """Delete nothing: a file that a row names is not ours."""


class InlineCache(diskcache.Cache):  # type: ignore[misc]
    """diskcache over one connection for all threads, which its caller lets in one at a time.

    It does not take pragmas from the database, as diskcache does for each connection.
    """

    _shared: sqlite3.Connection | None = None

    @property
    def _con(self) -> sqlite3.Connection:
        if self._shared is None:
            path = os.path.join(self._directory, DBNAME)
            self._shared = sqlite3.connect(
                path, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            for key, value in SETTINGS.items():
                if key.startswith("sqlite_"):
                    self.reset(key, value, update=False)
        return self._shared

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
