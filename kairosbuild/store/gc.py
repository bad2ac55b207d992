"""Garbage collection: keep what is in use, pinned, young, or used lately enough to fit; sweep the rest.

Mark: leases, pins and records, the most recently used first, each with every blob it names, directly
or through the small JSON documents it names (a stack, an image). Sweep: records before the blobs
they name, so that a kill at any point leaves no record without its outputs that a later run would
not notice anyway. It runs beside builds; see `lease` for why nothing vanishes under them.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.errors import HostError
from kairosbuild.store.lease import Holding
from kairosbuild.store.record import loads

if TYPE_CHECKING:
    from kairosbuild.store.store import Store

DAY = 86_400.0
_HEX = re.compile(rb"sha256:([0-9a-f]{64})")
_DOCUMENT = 1 << 20  # bytes: a document that names blobs is smaller
_BATCH = 200  # unlinks while builds must wait at the gate


@dataclass(slots=True)
class Swept:
    """What a collection removed (or would have, as a dry run), and what it could not."""

    records: int = 0
    blobs: int = 0
    trees: int = 0
    leftovers: int = 0
    freed: int = 0
    """Bytes of disk, of blobs and leftover files."""
    kept: int = 0
    """Bytes of disk that the blobs still take."""
    stuck: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _File:
    """A blob on the disk: bytes it takes, bytes it holds, when it was last stored (Unix nanoseconds)."""

    taken: int
    size: int
    born: int


class Collection:
    """One collection over one store. `run` it once."""

    def __init__(
        self, store: Store, *, keep_bytes: int | None, keep_age: float | None, grace: float, dry_run: bool
    ) -> None:
        self._store = store
        self._budget = keep_bytes
        self._began = _now(store)
        self._oldest = 0.0 if keep_age is None else time.time() - keep_age
        self._dry = dry_run
        self._holdings = store.leases.live()
        self._cutoff = min([self._began - round(grace * 1e9), *(held.started for held in self._holdings)])
        self._files: dict[str, _File] = {}
        self._marked: set[str] = set()
        self._total = 0
        self.swept = Swept()

    def run(self) -> Swept:
        """Mark and sweep."""
        self._files = dict(_scan(self._store))
        self._mark(self._reach(_digests(self._held(self._holdings))))
        self._mark(self._reach(self._store.pinned()))
        doomed = self._mark_records()
        if not self._dry:
            self._store.renew()  # before the first removal, for whoever remembers what is here
        self._sweep_records(doomed)
        self._sweep_blobs()
        self._sweep_trees()
        self._sweep_leftovers()
        if not self._dry:
            self._store.renew()
        self.swept.kept = sum(file.taken for file in self._files.values())
        return self.swept

    # -- mark ----------------------------------------------------------------------------------

    def _mark_records(self) -> list[tuple[str, float]]:
        """Mark what the records to keep name; returns the others, least recently used first."""
        held = self._held(self._holdings)
        doomed, full = [], False
        for key, used, data in sorted(self._store.actions.all(), key=lambda row: -row[1]):
            if data is None:
                continue  # no record of ours; swept with the leftovers
            reach = self._reach(map(bytes.decode, _HEX.findall(data)))
            wanted = used >= self._oldest and not full
            if used * 1e9 >= self._cutoff or _outputs(key, data) <= held or (wanted and self._fits(reach)):
                self._mark(reach)
            else:
                full = full or wanted
                doomed.append((key, used))
        return doomed[::-1]

    def _fits(self, reach: set[str]) -> bool:
        return self._budget is None or self._total + self._taken(reach) <= self._budget

    def _mark(self, found: set[str]) -> None:
        self._marked |= found
        self._total += self._taken(found)

    def _taken(self, found: Iterable[str]) -> int:
        return sum(self._files[one].taken for one in found)

    def _reach(self, digests: Iterable[str]) -> set[str]:
        """The blobs here, not yet marked, that these name, directly or through documents."""
        found: set[str] = set()
        todo = list(digests)
        while todo:
            one = todo.pop()
            file = self._files.get(one)
            if file is None or one in found or one in self._marked:
                continue
            found.add(one)
            if file.size <= _DOCUMENT:
                todo += self._named_by(one)
        return found

    def _named_by(self, digest: str) -> list[str]:
        with suppress(OSError), open(self._store.cas.path(f"sha256:{digest}"), "rb") as stream:
            head = stream.read(1)
            if head in (b"{", b"["):
                return [one.decode() for one in _HEX.findall(stream.read())]
        return []

    def _held(self, holdings: Iterable[Holding]) -> set[str]:
        return {thing for holding in holdings for thing in holding.things}

    # -- sweep ---------------------------------------------------------------------------------

    def _sweep_records(self, doomed: list[tuple[str, float]]) -> None:
        self.swept.records = len(doomed)
        if not self._dry:
            self.swept.records = self._store.actions.forget(doomed)

    def _sweep_blobs(self) -> None:
        """Unlink what nothing marked, least recently stored first, in batches behind the closed gate."""
        free = self._files.keys() - self._marked
        doomed = sorted((self._files[one].born, one) for one in free if self._files[one].born < self._cutoff)
        for start in range(0, len(doomed), _BATCH):
            batch = [one for _, one in doomed[start : start + _BATCH]]
            if self._dry:
                self._count(batch)
                continue
            with self._store.leases.gate.closed():
                spared = set(_digests(self._held(self._store.leases.live())))
                for data in self._store.actions.since(self._began / 1e9):
                    spared.update(map(bytes.decode, _HEX.findall(data)))
                self._count([one for one in batch if one not in spared and self._unlink(one)])

    def _unlink(self, digest: str) -> bool:
        path = self._store.cas.path(f"sha256:{digest}")
        try:
            if os.lstat(path).st_ctime_ns >= self._cutoff:  # found again since the mark
                return False
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as problem:
            self.swept.stuck.append(f"{path}: {problem.strerror}")
            return False
        return True

    def _count(self, digests: list[str]) -> None:
        self.swept.blobs += len(digests)
        self.swept.freed += sum(self._files.pop(one).taken for one in digests)

    def _sweep_trees(self) -> None:
        trees = self._store.trees
        for place in sorted(trees.root.iterdir()):
            if trees.used(place) >= self._cutoff:
                continue
            if not self._dry:
                with self._store.leases.gate.closed():
                    held = self._held(self._store.leases.live())
                    if f"tree:{place.name}" in held or trees.used(place) >= self._cutoff:
                        continue
                    moved = trees.unhook(place)
                if not trees.destroy(moved):
                    self.swept.stuck.append(f"{moved}: belongs to mapped users")
                    continue
            self.swept.trees += 1

    def _sweep_leftovers(self) -> None:
        """What killed processes left: temporary files, damaged ones set aside, files nobody knows."""
        for path in self._leftovers():
            try:
                status = os.lstat(path)
            except FileNotFoundError:  # of a running build
                continue
            if status.st_ctime_ns >= self._cutoff:
                continue
            if not self._dry and not self._store.trees.destroy(path):
                self.swept.stuck.append(f"{path}: belongs to mapped users")
                continue
            self.swept.leftovers += 1
            self.swept.freed += 0 if path.is_dir() else status.st_blocks * 512
        if not self._dry:
            self.swept.leftovers += self._store.actions.sweep(self._cutoff / 1e9)

    def _leftovers(self) -> Iterator[Path]:
        root = self._store.root
        for folder in ("tmp", "damaged"):
            if (root / folder).is_dir():
                yield from sorted((root / folder).iterdir())
        if (root / "actions").is_dir():  # diskcache's own orphans, and whatever is not its database
            files = sorted((root / "actions").iterdir())
            yield from (path for path in files if not path.name.startswith("cache.db"))
        for path in (root / "blobs" / "sha256").glob("*/*"):
            if len(path.name) != 64 or path.is_symlink() or not path.is_file():
                yield path


def collect(
    store: Store, *, keep_bytes: int | None, keep_age: float | None, grace: float, dry_run: bool
) -> Swept:
    """Collect garbage. Raises HostError `gc-running` when another process does so already."""
    with store.locks.attempt("gc") as alone:
        if not alone:
            raise HostError("another process collects this store's garbage", reason="gc-running")
        return Collection(store, keep_bytes=keep_bytes, keep_age=keep_age, grace=grace, dry_run=dry_run).run()


def _now(store: Store) -> int:
    """Nanoseconds by the clock that stamps files, which is coarser than time.time() and so behind it."""
    marker = store.root / "collected"
    marker.touch()
    return os.stat(marker).st_ctime_ns


def _scan(store: Store) -> Iterator[tuple[str, _File]]:
    for shard in os.scandir(store.root / "blobs" / "sha256"):
        for entry in os.scandir(shard.path):
            with suppress(FileNotFoundError):  # set aside meanwhile
                status = entry.stat(follow_symlinks=False)
                if len(entry.name) != 64 or not stat.S_ISREG(status.st_mode):
                    continue
                yield entry.name, _File(status.st_blocks * 512, status.st_size, status.st_ctime_ns)


def _outputs(key: str, data: bytes) -> set[str]:
    record = loads(key, data)
    assert record is not None  # `all` gives sound ones only
    return {blob.digest for blob in record.outputs.values()}


def _digests(things: Iterable[str]) -> Iterator[str]:
    return (thing[7:] for thing in things if thing.startswith("sha256:"))
