"""The persistent partition grows to the end of its disk: table, kernel, filesystem, each while it is in use.

One that is encrypted takes two starts: what opened it, with its key, is gone by now, so the next start opens more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from kairosbuild.node import gpt, machine
from kairosbuild.node.problem import Problem

PERSISTENT = machine.RUN / "persistent"
_BLKPG, _RESIZE_PARTITION = 0x1269, 3
_EXT4_RESIZE = 0x40086610


def grow(place: Path = PERSISTENT) -> int:
    """Grow what is mounted there; how many bytes it has gained. Doing it again is harmless."""
    device = machine.mounted_from(place)
    if not device:
        return 0
    node = machine.block(device)
    below = partition_below(node)
    number, disk = int((below / "partition").read_text()), machine.parent(f"/dev/{below.name}")
    before = _size(node)
    with Path(disk).open("r+b") as file:
        if partition := gpt.grow_last(file, number):
            _tell_kernel(file.fileno(), partition)
    _grow_filesystem(place, _size(node))
    return _size(node) - before


def partition_below(node: Path) -> Path:
    """The partition that a block device is, or that the device mapper has it on."""
    while not (node / "partition").exists():
        lower = list((node / "slaves").iterdir())
        if len(lower) != 1:
            raise Problem(f"{node.name} lies on no partition", reason="no-partition")
        node = Path("/sys/class/block", lower[0].name)
    return node


def _size(node: Path) -> int:
    return int((node / "size").read_text()) * gpt.SECTOR


def _tell_kernel(handle: int, partition: gpt.Partition) -> None:
    start = partition.first * gpt.SECTOR
    length = (partition.last - partition.first + 1) * gpt.SECTOR
    asked = ctypes.create_string_buffer(struct.pack("<qqi64s64s", start, length, partition.number, b"", b""))
    size = len(asked) - 1
    fcntl.ioctl(handle, _BLKPG, struct.pack("@iiiP", _RESIZE_PARTITION, 0, size, ctypes.addressof(asked)))


def _grow_filesystem(place: Path, size: int) -> None:
    found = os.statvfs(place)
    if size - found.f_blocks * found.f_frsize < size // 16:  # what is missing is its own bookkeeping
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, _EXT4_RESIZE, struct.pack("<Q", size // found.f_bsize))
    finally:
        os.close(handle)
