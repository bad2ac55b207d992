"""The action cache: key → what the action yielded. Everything doubtful in it is a miss, never an error.

diskcache holds the rows and does the writing. Reading goes past it, straight to its database: a
build in which everything hits reads thousands of rows in a few selects, and need not load diskcache.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core import canonical
from kairosbuild.core.errors import HostError
from kairosbuild.store import record as records
from kairosbuild.store.cas import Cas
from kairosbuild.store.locks import Locks
from kairosbuild.store.record import Record
from kairosbuild.store.space import disk_full

if TYPE_CHECKING:
    from kairosbuild.store.disk import InlineCache

_RECORD, _LAST = "record:", "last:"
_ROWS = 500  # keys in one select; sqlite allows 999 parameters in its oldest builds
_WAIT = 600.0  # seconds to wait for another process's transaction
_FRESH = 86_400.0  # seconds: how exact "last used" is, so that a hit need not write

_NO_DAMAGE = ("locked", "full", "readonly", "unable to open", "interrupted", "no such table")

_Row = tuple[str, bytes]


class ActionCache:
    """The records under `root`, whose outputs live in `cas`. Any thread and any process may call it."""

    def __init__(self, root: Path, cas: Cas) -> None:
        self.root = root
        self._cas = cas
        self._file = f"{root}/cache.db"
        self._locks = Locks(cas.root / "locks")
        self.notes: list[str] = []
        """What a person should know about the cache's own health."""
        self._mutex = threading.RLock()
        self._local = threading.local()
        self._reader: sqlite3.Connection | None = None
        self._writer: InlineCache | None = None
        self._pid = os.getpid()

    # -- reading -------------------------------------------------------------------------------

    def get(self, key: str) -> Record | None:
        """The record of this key, if it is sound and all its outputs are here."""
        return self.get_many((key,)).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Record]:
        """The sound records of these keys whose outputs are all here."""
        found, stale, now = {}, [], time.time()
        for row, data, used in self._select(_RECORD + key for key in keys):
            key = row[len(_RECORD) :]
            record = records.loads(key, data)
            if record is None:
                continue
            found[key] = record
            if not isinstance(used, float) or used < now - _FRESH:
                stale.append(key)
        if not found:
            return found
        lacking = self._cas.missing(blob for record in found.values() for blob in record.outputs.values())
        if lacking:
            found = {
                key: record for key, record in found.items() if lacking.isdisjoint(record.outputs.values())
            }
        self._touch(key for key in stale if key in found)
        return found

    def last(self, name: str) -> str | None:
        """The key this name (of a recipe's node) had when it was last built or found."""
        return self.lasts((name,)).get(name)

    def lasts(self, names: Iterable[str]) -> dict[str, str]:
        """The last keys of many names at once."""
        found = {}
        for row, data, _ in self._select(_LAST + name for name in names):
            value = records.document(data)
            if isinstance(value, dict) and value.get("name") == row[len(_LAST) :]:
                found[row[len(_LAST) :]] = str(value.get("key"))
        return found

    def peek(self, key: str) -> Record | None:
        """The record of this key even if its outputs are gone: to say what was, not to use it."""
        for _, data, _ in self._select((_RECORD + key,)):
            return records.loads(key, data)
        return None

    def all(self) -> Iterator[tuple[str, float, bytes | None]]:
        """Every record: its key, when it was last used (Unix seconds), its bytes; None for an unsound row."""
        for key, raw, mode, used, value in self._query(
            "SELECT key, raw, mode, access_time, value FROM Cache"
        ):
            if not _is_ours(key, raw, mode, value):
                yield str(key), 0.0, None
            elif key.startswith(_RECORD):
                yield key[len(_RECORD) :], float(used or 0), value if _is_sound(key, value) else None

    def since(self, when: float) -> list[bytes]:
        """The bytes of all records that were put or used since then (Unix seconds)."""
        query = "SELECT value FROM Cache WHERE raw = 1 AND mode = 1 AND access_time >= ?"
        return [value for (value,) in self._query(query, (when,)) if type(value) is bytes]

    # -- writing -------------------------------------------------------------------------------

    def put(self, record: Record, *, last: str = "") -> None:
        """Keep a record; with `last`, also as the latest of that name. Raises HostError `disk-full`."""
        self._write(
            [(_RECORD + record.key, records.dumps(record)), *_pointers({last: record.key} if last else {})]
        )

    def set_last(self, keys: Mapping[str, str]) -> None:
        """Remember for each name the key it has now."""
        self._write(_pointers(keys))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Keep what this thread puts in the block at its end, all or none of it, and much faster."""
        if getattr(self._local, "rows", None) is not None:  # inside another batch
            yield
            return
        self._local.rows = []
        try:
            yield
            rows = self._local.rows
        finally:
            self._local.rows = None
        self._write(rows)

    def forget(self, rows: Iterable[tuple[str, float]]) -> int:
        """Forget records not used since the time (Unix seconds) beside them; returns how many."""
        statement = "DELETE FROM Cache WHERE key = ? AND raw = 1 AND access_time <= ?"
        return self._execute(statement, [(_RECORD + key, used) for key, used in rows])

    def sweep(self, before: float) -> int:
        """Forget unsound rows, and names whose record is gone if older than `before`; returns how many."""
        query = "SELECT rowid, store_time, key, raw, mode, value FROM Cache"
        rows = self._query(query)  # once: a record put meanwhile must not look like one of neither kind
        ours = [(key, value) for _, _, key, raw, mode, value in rows if _is_ours(key, raw, mode, value)]
        sound = {key[len(_RECORD) :] for key, value in ours if _is_sound(key, value)}
        doomed = [
            (rowid, stored)
            for rowid, stored, key, raw, mode, value in rows
            if not _is_ours(key, raw, mode, value) or _is_idle(key, value, stored, sound, before)
        ]
        return self._execute("DELETE FROM Cache WHERE rowid = ? AND store_time IS ?", doomed)

    def close(self) -> None:
        """Give the database handles back."""
        with self._mutex:
            if self._writer is not None:
                self._writer.close()
            if self._reader is not None:
                self._reader.close()
            self._reader = self._writer = None

    # -- inside --------------------------------------------------------------------------------

    def _write(self, rows: list[_Row]) -> None:
        """Set these rows in one transaction; a damaged database is replaced."""
        waiting = getattr(self._local, "rows", None)
        if waiting is not None:
            waiting += rows
        elif rows:
            for sure in (False, True):
                try:
                    return self._transact(rows)
                except sqlite3.Error as problem:
                    self._recover(problem, sure=sure)
            try:
                self._transact(rows)
            except sqlite3.Error as problem:
                raise _host(problem, self._file) from problem
        return None

    def _transact(self, rows: list[_Row]) -> None:
        """One transaction; one thread at a time, because sqlite waits for a lock by sleeping."""
        with self._mutex:
            try:
                cache = self._cache()
                with cache.transact():
                    for key, value in rows:
                        cache.set(key, value)
            except BaseException as problem:
                self.close()
                if type(problem).__name__ == "Timeout":  # diskcache's word for whatever stops a transaction
                    raise HostError(
                        f"the action cache cannot be written ({self._file})",
                        reason="store-busy",
                        hint="another process may hold it; it must be writable for this user",
                    ) from problem
                raise

    def _cache(self) -> InlineCache:
        """diskcache over this folder: keeps everything until told, waits long, unpickles nothing."""
        self._after_fork()
        if self._writer is None:
            from kairosbuild.store.disk import SETTINGS, InlineCache, InlineDisk

            self._straighten(SETTINGS)
            self._writer = InlineCache(str(self.root), timeout=_WAIT, disk=InlineDisk, **SETTINGS)
        return self._writer

    def _straighten(self, settings: Mapping[str, Any]) -> None:
        """Drop settings that are not ours: diskcache makes attributes and pragmas of whatever it finds."""
        kept = {**settings, **dict.fromkeys(("count", "size", "hits", "misses"))}
        for key, value in self._query("SELECT key, value FROM Settings"):
            if key not in kept or kept[key] not in (None, value):
                self._execute("DELETE FROM Settings WHERE key = ?", [(key,)])

    def _touch(self, keys: Iterable[str]) -> None:
        rows = [(time.time(), _RECORD + key) for key in keys]
        if rows:
            with suppress(HostError):  # a store that cannot be written still hits
                self._execute("UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", rows)

    def _select(self, rows: Iterable[str]) -> Iterator[tuple[str, bytes, Any]]:
        """The rows that hold plain bytes inline; any other is passed over."""
        names = list(rows)
        for start in range(0, len(names), _ROWS):
            part = names[start : start + _ROWS]
            marks = ",".join("?" * len(part))
            query = (
                f"SELECT key, value, access_time FROM Cache WHERE raw = 1 AND mode = 1 AND key IN ({marks})"  # noqa: S608 (marks are question marks)
            )
            for key, value, used in self._query(query, part):
                if isinstance(key, str) and type(value) is bytes:
                    yield key, value, used

    def _query(self, query: str, arguments: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows, or none where there is no database yet or it is damaged."""
        try:
            with self._mutex:
                reader = self._connection()
                return reader.execute(query, tuple(arguments)).fetchall() if reader else []
        except sqlite3.Error as problem:
            self._recover(problem)
            return []

    def _execute(self, statement: str, rows: list[tuple[Any, ...]]) -> int:
        """Run this for each of the rows in one transaction; returns how many rows it changed."""
        try:
            with self._mutex:
                connection = self._connection()
                if connection is None or not rows:
                    return 0
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    return connection.executemany(statement, rows).rowcount
        except sqlite3.Error as problem:
            self._recover(problem)
            return 0

    def _recover(self, problem: sqlite3.Error, *, sure: bool = False) -> None:
        """Make what is damaged empty. Raises HostError for what is no damage."""
        if _is_damage(problem):
            self._set_aside(sure=sure)
        elif "no such table" not in str(problem):  # its maker was killed before it made any
            raise _host(problem, self._file) from problem

    def _connection(self) -> sqlite3.Connection | None:
        self._after_fork()
        if self._reader is None and os.path.exists(self._file):
            self._reader = sqlite3.connect(
                self._file, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
            self._reader.text_factory = _text
        return self._reader

    def _after_fork(self) -> None:
        if self._pid != os.getpid():  # sqlite forbids a connection to cross a fork, even to be closed
            self._reader = self._writer = None
            self._pid = os.getpid()

    def _set_aside(self, *, sure: bool) -> None:
        """Move a database out of the way; the next write starts a new one.

        Unless `sure`, sqlite is asked first: the trouble may be passing, or another process has done it.
        """
        with self._mutex, self._locks.hold("actions"):
            self.close()
            if os.path.exists(self._file) and (sure or not _healthy(self._file)):
                aside = f"{self._cas.root}/damaged/actions-{time.time_ns()}"
                os.makedirs(aside)
                for name in ("cache.db", "cache.db-wal", "cache.db-shm"):
                    with suppress(FileNotFoundError):
                        os.rename(f"{self.root}/{name}", f"{aside}/{name}")
                self.notes.append(f"the action cache was damaged; it was moved to {aside} and started anew")


def _pointers(keys: Mapping[str, str]) -> list[_Row]:
    return [
        (_LAST + name, records.sealed(canonical.dumps({"name": name, "key": key})))
        for name, key in keys.items()
    ]


def _is_ours(key: object, raw: object, mode: object, value: object) -> bool:
    """Whether a row is text → plain bytes, under a key we could have made."""
    plain = raw == 1 and mode == 1 and type(value) is bytes  # diskcache.core.MODE_RAW
    return plain and isinstance(key, str) and key.startswith((_RECORD, _LAST))


def _is_sound(key: str, value: bytes) -> bool:
    return key.startswith(_RECORD) and records.loads(key[len(_RECORD) :], value) is not None


def _is_idle(key: str, value: bytes, stored: object, sound: set[str], before: float) -> bool:
    """Whether our row is of no use: a damaged record, or a name that points to none and is old."""
    if key.startswith(_RECORD):
        return key[len(_RECORD) :] not in sound
    pointed = records.document(value)
    if isinstance(pointed, dict) and pointed.get("key") in sound:
        return False
    return not isinstance(stored, float) or stored < before


def _text(data: bytes) -> str:
    """Text of a database, whatever it is: one row that is not UTF-8 must not hide all others."""
    return data.decode("utf-8", "replace")


def _healthy(file: str) -> bool:
    """Whether sqlite finds nothing wrong: another process may have replaced the file in the meantime."""
    try:
        with closing(sqlite3.connect(file, timeout=_WAIT, isolation_level=None)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


def _is_damage(problem: sqlite3.Error) -> bool:
    """Whether this says that the file's content is wrong, rather than the disk, the rights or the traffic.

    An index that contradicts its table, a read that ends early, a table of another shape are damage.
    """
    return isinstance(problem, sqlite3.DatabaseError) and not any(word in str(problem) for word in _NO_DAMAGE)


def _host(problem: sqlite3.Error, where: str) -> HostError:
    if "full" in str(problem):
        return disk_full(where)
    return HostError(f"the action cache cannot be used: {problem} ({where})", reason="store-unusable")
