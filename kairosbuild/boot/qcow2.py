"""A qcow2 image from a sparse raw file: only clusters that hold something, in one sequential write.

`qemu-img convert` makes the same; this hashes nothing twice and is a function of the raw bytes alone.
<https://www.qemu.org/docs/master/interop/qcow2.html>
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

CLUSTER = 65536
_MAGIC = b"QFI\xfb"
_COPIED = 1 << 63
_REFCOUNTS = CLUSTER // 2      # 16-bit reference counts in one cluster
_ENTRIES = CLUSTER // 8


def convert(raw: int, size: int, write: Callable[[bytes], object]) -> None:
    """Write the image of this open file, a disk of `size` bytes, through `write`, front to back."""
    used = list(_used(raw, size))
    tables = sorted({number // _ENTRIES for number in used})
    l1_clusters = -(-max(1, -(-size // (CLUSTER * _ENTRIES))) * 8 // CLUSTER)
    fixed = 1 + l1_clusters + len(tables)                        # header, L1, L2s; then refcounts, then data
    blocks, directory = _refcount_clusters(fixed + len(used))
    first_l2 = 1 + l1_clusters + directory + blocks
    first_data = first_l2 + len(tables)
    total = first_data + len(used)
    l1_entries = -(-size // (CLUSTER * _ENTRIES))
    write(_header(size, l1_entries, directory, 1 + l1_clusters))
    write(_l1(tables, l1_entries, first_l2).ljust(l1_clusters * CLUSTER, b"\0"))
    at = (1 + l1_clusters + directory) * CLUSTER
    write(struct.pack(f">{blocks}Q", *range(at, at + blocks * CLUSTER, CLUSTER)).ljust(directory * CLUSTER, b"\0"))
    write((b"\0\1" * total).ljust(blocks * CLUSTER, b"\0"))
    for table in _l2(used, tables, first_data):
        write(table)
    for start, count in _runs(used):
        write(os.pread(raw, count * CLUSTER, start * CLUSTER).ljust(count * CLUSTER, b"\0"))


def _used(raw: int, size: int) -> Iterator[int]:
    """The numbers of clusters that are not all zero; holes are not read."""
    zero, at, last = bytes(CLUSTER), 0, -1
    while at < size:
        try:
            begin = os.lseek(raw, at, os.SEEK_DATA)
        except OSError:      # ENXIO: nothing but a hole is left
            return
        end = min(os.lseek(raw, begin, os.SEEK_HOLE), size)
        for number in range(max(begin // CLUSTER, last + 1), -(-end // CLUSTER)):
            chunk = os.pread(raw, CLUSTER, number * CLUSTER)
            if chunk != zero[:len(chunk)]:
                yield number
            last = number
        at = end


def _runs(used: list[int], most: int = 64) -> Iterator[tuple[int, int]]:
    """Neighbours together: (first cluster, how many)."""
    at = 0
    while at < len(used):
        count = 1
        while count < most and at + count < len(used) and used[at + count] == used[at] + count:
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
    fields = struct.pack(">4sIQIIQIIQQIIQQQQII", _MAGIC, 3, 0, 0, 16, size, 0, l1_entries, CLUSTER,
                         refcounts_at * CLUSTER, directory, 0, 0, 0, 0, 0, 4, 104)
    return fields.ljust(CLUSTER, b"\0")


def _l1(tables: list[int], entries: int, first: int) -> bytes:
    where = {table: (first + place) * CLUSTER | _COPIED for place, table in enumerate(tables)}
    return struct.pack(f">{entries}Q", *(where.get(number, 0) for number in range(entries)))


def _l2(used: list[int], tables: list[int], first: int) -> Iterator[bytes]:
    place = {number: (first + order) * CLUSTER | _COPIED for order, number in enumerate(used)}
    for table in tables:
        yield struct.pack(f">{_ENTRIES}Q", *(place.get(table * _ENTRIES + n, 0) for n in range(_ENTRIES)))
