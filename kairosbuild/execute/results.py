"""Finished results by key: the local action cache first, then the remotes, whose blobs are brought in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store


class Remote(Protocol):
    """A shared cache of results."""

    name: str

    def get(self, key: str) -> Record | None:
        """The record of this key, or None. It was checked to be one for this key."""

    def download(self, blob: Blob) -> None:
        """Bring one blob into the local store, verified."""


class Results:
    """Where results are looked up and kept."""

    def __init__(self, store: Store, remotes: Sequence[Remote] = ()) -> None:
        self.store = store
        self.remotes = tuple(remotes)

    def local(self, key: str) -> Record | None:
        """The record of a key when it and all its outputs are here."""
        return self.store.actions.get(key)

    def remote(self, key: str) -> tuple[str, Record] | None:
        """The first remote that has the key, and its record, now here with all its outputs.

        A remote that fails is passed over: a cache is never the reason that a build fails.
        """
        for remote in self.remotes:
            try:
                record = remote.get(key)
                if record is None or record.key != key:
                    continue
                self._bring(remote, record)
            except (HostError, OSError):
                continue
            self.keep(record)
            return remote.name, record
        return None

    def peek(self, key: str) -> tuple[str, Record] | None:
        """Where a key could be had from ("local" or a remote's name), and its record. Nothing is brought."""
        if record := self.local(key):
            return "local", record
        for remote in self.remotes:
            try:
                if record := remote.get(key):
                    return remote.name, record
            except (HostError, OSError):
                continue
        return None

    def keep(self, record: Record) -> None:
        """Remember a result, whose outputs are in the store."""
        self.store.actions.put(record)

    def _bring(self, remote: Remote, record: Record) -> None:
        blobs = [*record.outputs.values(), *([record.log] if record.log else [])]
        for blob in self.store.cas.missing(blobs):
            remote.download(blob)
            if not self.store.cas.has(blob):
                raise HostError(f"{remote.name} did not deliver {blob.digest}", reason="remote-incomplete")
