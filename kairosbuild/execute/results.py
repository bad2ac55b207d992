"""Finished results by key: the local action cache first, then the caches that are shared with others.

A result found in a shared cache counts as it is: its blobs are brought only when somebody reads them. A
build in which everything hits therefore moves records and nothing else. What a cache promised and cannot
deliver is *lost*: its record is a miss from then on, and the engine builds what made it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.graph import keys
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store

Found = tuple[Record, frozenset[Blob]]
"""A record, and the blobs a shared cache has for it: outputs, log, and what documents among them name."""


class Remote(Protocol):
    """A shared cache that results are looked up in. Nothing it does ever fails a build.

    It is asked by many threads. What it said and could not deliver it does not say again.
    """

    name: str

    def get(self, key: str) -> Found | None:
        """The record of this key, with every blob kept for it, or None."""

    def bring(self, blobs: Collection[Blob]) -> None:
        """Bring those of these blobs that it has into the local store, verified."""

    def shun(self, key: str, why: str) -> None:
        """Never give this record again: it is not what it should be."""


class Keeper(Protocol):
    """A shared cache that results are put into."""

    def put(self, record: Record) -> None:
        """Take a result whose blobs are in the local store. Returns at once."""


class Results:
    """Where results are looked up and kept."""

    def __init__(self, store: Store, remotes: Sequence[Remote] = (), keepers: Sequence[Keeper] = ()) -> None:
        self.store = store
        self.remotes = tuple(remotes)
        self.keepers = tuple(keepers)
        self.lost: set[Blob] = set()
        """What was promised and not delivered."""
        self._found: dict[str, tuple[str, Record]] = {}
        self._held: dict[str, frozenset[Blob]] = {}
        self._promised: set[Blob] = set()
        self._lock = threading.Lock()

    def local(self, key: str) -> Record | None:
        """The record of a key when it and all its outputs are here."""
        record = self.store.actions.get(key)
        if record is not None:
            self._share(record)
        return record

    def remote(self, key: str) -> tuple[str, Record] | None:
        """The first shared cache that has the key, and its record, whose blobs need not be here."""
        if key in self._found:
            return self._found[key]
        for remote in self.remotes:
            found = self._asked(remote, key)
            if found is None or not self.lost.isdisjoint(found[1]):
                continue
            record, held = found
            self.store.actions.put(record)
            with self._lock:
                self._found[key], self._held[key] = (remote.name, record), held
                self._promised |= held
            return remote.name, record
        return None

    def is_lost(self, key: str) -> bool:
        """Whether a shared cache said it had this result and has not all of it."""
        return not self.lost.isdisjoint(self._held.get(key, ()))

    def peek(self, key: str) -> tuple[str, Record] | None:
        """Where a key could be had from ("local" or a cache's name), and its record. Nothing is brought."""
        if record := self.store.actions.get(key):
            return "local", record
        return self.remote(key)

    def keep(self, record: Record) -> None:
        """Remember a result, whose outputs are in the store."""
        self.store.actions.put(record)
        self._share(record)

    def absent(self, blobs: Iterable[Blob]) -> set[Blob]:
        """Which of these are neither here nor promised by a shared cache."""
        return self.store.cas.missing(blobs) - self._promised

    def bring(self, blobs: Iterable[Blob]) -> set[Blob]:
        """Have these blobs here, as far as any shared cache has them; the ones that are not."""
        lacking = self.store.cas.missing(blobs)
        for remote in self.remotes:
            if not lacking:
                break
            remote.bring(lacking)
            lacking = self.store.cas.missing(lacking)
        if lacking:
            self._lose(lacking)
        return lacking

    def _asked(self, remote: Remote, key: str) -> Found | None:
        try:
            found = remote.get(key)
        except (HostError, OSError):
            return None
        if found is None or _belongs(found[0], key):
            return found
        remote.shun(key, "its preimage is another key's")
        return None

    def _lose(self, blobs: set[Blob]) -> None:
        with self._lock:
            self.lost |= blobs & self._promised
            self._promised -= blobs
            self._found = {k: v for k, v in self._found.items() if blobs.isdisjoint(self._held[k])}

    def _share(self, record: Record) -> None:
        for keeper in self.keepers:
            keeper.put(record)


def _belongs(record: Record, key: str) -> bool:
    """Whether the key asked for is the one that the record's own preimage has."""
    found: Any = record.preimage
    try:
        if keys.key(found) == key:
            return True
        return keys.derived_key(found["domain"], found["version"], found["preimage"]) == key
    except (KeyError, TypeError, ValueError):
        return False
