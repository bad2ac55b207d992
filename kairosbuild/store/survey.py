"""How much of what the store holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kairosbuild.store.store import Store


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts, and bytes of disk (holes and shared extents not seen through)."""

    blobs: int = 0
    blob_bytes: int = 0
    records: int = 0
    record_bytes: int = 0
    trees: int = 0
    leases: int = 0
    leftover_bytes: int = 0
    """Temporary and damaged files; those of running builds included."""


def survey(store: Store) -> Survey:
    """Count everything. Takes a second for some hundred thousand blobs."""
    blobs = list(_sizes(store.root / "blobs"))
    return Survey(
        blobs=len(blobs),
        blob_bytes=sum(blobs),
        records=sum(data is not None for _, _, data in store.actions.all()),
        record_bytes=sum(_sizes(store.root / "actions")),
        trees=len(os.listdir(store.trees.root)),
        leases=len(store.leases.live()),
        leftover_bytes=sum(_sizes(store.root / "tmp")) + sum(_sizes(store.root / "damaged")),
    )


def _sizes(folder: Path) -> Iterator[int]:
    """The disk bytes of each file below; what vanishes or may not be read meanwhile is passed over."""
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
