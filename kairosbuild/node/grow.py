"""The persistent partition grows to the end of its disk: table, kernel, filesystem, each while it is in use."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

from kairosbuild.node import gpt, machine

PERSISTENT = machine.RUN / "persistent"
_BLKPG, _RESIZE_PARTITION = 0x1269, 3
_EXT4_RESIZE = 0x40086610
_BLOCK = 4096


def grow(place: Path = PERSISTENT) -> int:
    """Grow what is mounted there; how many bytes it has gained. Doing it again is harmless."""
    device = machine.mounted_from(place)
    if not device:
        return 0
    node = Path("/sys/class/block", Path(device).name)
    number, disk = int((node / "partition").read_text()), machine.parent(device)
    before = _size(node)
    with Path(disk).open("r+b") as file:
        if partition := gpt.grow_last(file, number):
            _tell_kernel(file.fileno(), partition)
    _grow_filesystem(place, _size(node))
    return _size(node) - before


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
    blocks = size // _BLOCK
    if (
        blocks * _BLOCK - found.f_blocks * found.f_frsize < size // 16
    ):  # what is missing is its own bookkeeping
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, _EXT4_RESIZE, struct.pack("<Q", blocks))
    finally:
        os.close(handle)
