"""A qcow2 image of a sparse disk: only clusters that hold something, in one sequential write.

`qemu-img convert` makes the same out of a raw file; this needs no raw file.
<https://www.qemu.org/docs/master/interop/qcow2.html>
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from kairosbuild.boot.sparse import Sparse

CLUSTER = 65536
_MAGIC = b"QFI\xfb"
_COPIED = 1 << 63
_REFCOUNTS = CLUSTER // 2  # 16-bit reference counts in one cluster
_ENTRIES = CLUSTER // 8


def write(disk: Sparse, write: Callable[[bytes | memoryview], object]) -> None:
    """Write the image of this disk through `write`, front to back."""
    size, used = disk.size, disk.used(CLUSTER)
    tables = sorted({number // _ENTRIES for number in used})
    l1_clusters = -(-max(1, -(-size // (CLUSTER * _ENTRIES))) * 8 // CLUSTER)
    fixed = 1 + l1_clusters + len(tables)  # header, L1, L2s; then refcounts, then data
    blocks, directory = _refcount_clusters(fixed + len(used))
    first_l2 = 1 + l1_clusters + directory + blocks
    first_data = first_l2 + len(tables)
    total = first_data + len(used)
    l1_entries = -(-size // (CLUSTER * _ENTRIES))
    write(_header(size, l1_entries, directory, 1 + l1_clusters))
    write(_l1(tables, l1_entries, first_l2).ljust(l1_clusters * CLUSTER, b"\0"))
    at = (1 + l1_clusters + directory) * CLUSTER
    write(
        struct.pack(f">{blocks}Q", *range(at, at + blocks * CLUSTER, CLUSTER)).ljust(
            directory * CLUSTER, b"\0"
        )
    )
    write((b"\0\1" * total).ljust(blocks * CLUSTER, b"\0"))
    for table in _l2(used, tables, first_data):
        write(table)
    for start, count in _runs(used):
        for chunk in disk.read(start * CLUSTER, (start + count) * CLUSTER):
            write(chunk)


def _runs(used: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together: (first cluster, how many)."""
    at = 0
    while at < len(used):
        count = 1
        while at + count < len(used) and used[at + count] == used[at] + count:
            count += 1
        yield used[at], count
        at += count


def _refcount_clusters(others: int) -> tuple[int, int]:
    """How many refcount blocks and table clusters count `others` clusters and themselves."""
    blocks = directory = 1
    while blocks * _REFCOUNTS < others + blocks + directory or directory * _ENTRIES < blocks:
        blocks = -(-(others + blocks + directory) // _REFCOUNTS)
        directory = -(-blocks // _ENTRIES)
    return blocks, directory


def _header(size: int, l1_entries: int, directory: int, refcounts_at: int) -> bytes:
    fields = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        _MAGIC,
        3,
        0,
        0,
        16,
        size,
        0,
        l1_entries,
        CLUSTER,
        refcounts_at * CLUSTER,
        directory,
        0,
        0,
        0,
        0,
        0,
        4,
        104,
    )
    return fields.ljust(CLUSTER, b"\0")


def _l1(tables: list[int], entries: int, first: int) -> bytes:
    where = {table: (first + place) * CLUSTER | _COPIED for place, table in enumerate(tables)}
    return struct.pack(f">{entries}Q", *(where.get(number, 0) for number in range(entries)))


def _l2(used: list[int], tables: list[int], first: int) -> Iterator[bytes]:
    place = {number: (first + order) * CLUSTER | _COPIED for order, number in enumerate(used)}
    for table in tables:
        yield struct.pack(f">{_ENTRIES}Q", *(place.get(table * _ENTRIES + n, 0) for n in range(_ENTRIES)))
