"""Verification: hash everything that is here, and make what is damaged a miss."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.digest import Blob
from kairosbuild.store.cas import SEAL, hash_handle

if TYPE_CHECKING:
    from kairosbuild.store.store import Store


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification found. Blobs in `damaged` were moved to the store's folder of that name."""

    blobs: int = 0
    bytes: int = 0
    damaged: tuple[str, ...] = ()
    """Digests whose file held something else."""
    records: int = 0
    forgotten: int = 0
    """Records and rows that were unsound or whose outputs are gone."""
    trees: int = 0
    """Trees removed, to be made anew from verified blobs; those in use stay."""

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.damaged and not self.forgotten


def verify(store: Store, progress: Callable[[int], None] = lambda size: None) -> Verified:
    """Rehash every blob, check every record against them; `progress` hears the bytes as they are done."""
    blobs = total = 0
    damaged = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for digest, size, sound in pool.map(lambda path: _check(store, path), _paths(store)):
            blobs, total = blobs + 1, total + size
            progress(size)
            if not sound:
                damaged.append(digest)
    trees = _drop_trees(store)
    records, forgotten = _check_records(store)
    if damaged or forgotten:
        store.renew()
    return Verified(blobs, total, tuple(sorted(damaged)), records, forgotten, trees)


def _paths(store: Store) -> Iterator[Path]:
    return (path for path in (store.root / "blobs" / "sha256").glob("*/*") if len(path.name) == 64)


def _check(store: Store, path: Path) -> tuple[str, int, bool]:
    """(digest, size, sound) of one file; damaged ones are moved away, sound ones sealed."""
    digest = f"sha256:{path.name}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # collected in the meantime
        return digest, 0, True
    except OSError:
        store.cas.discard(digest)
        return digest, 0, False
    try:
        status = os.fstat(handle)
        if hash_handle(handle, status) == Blob(digest, status.st_size):
            _seal(path, handle, status)
            return digest, status.st_size, True
        with store.leases.gate.closed(), suppress(FileNotFoundError):
            if os.lstat(path).st_ino == status.st_ino:  # not already replaced by a sound one
                store.cas.discard(digest)
        return digest, status.st_size, False
    finally:
        os.close(handle)


def _seal(path: Path, handle: int, status: os.stat_result) -> None:
    with suppress(PermissionError):
        if status.st_mode & 0o777 != 0o444:
            os.fchmod(handle, 0o444)
        if status.st_mtime_ns != SEAL:
            os.utime(handle, ns=(status.st_atime_ns, SEAL))


def _drop_trees(store: Store) -> int:
    """Trees cannot be checked against anything; they are quickly made anew."""
    count = 0
    for place in sorted(store.trees.root.iterdir()):
        with store.leases.gate.closed():
            if any(f"tree:{place.name}" in held.things for held in store.leases.live()):
                continue
            moved = store.trees.unhook(place)
        store.trees.destroy(moved)
        count += 1
    return count


def _check_records(store: Store) -> tuple[int, int]:
    forgotten = store.actions.sweep(0.0)
    rows = [(key, used) for key, used, data in store.actions.all() if data is not None]
    kept = store.actions.get_many(key for key, _ in rows)
    return len(kept), forgotten + store.actions.forget([row for row in rows if row[0] not in kept])
