"""What a power cut leaves on the EFI partition, mended before it is mounted: FAT keeps no journal.

Names are written one after the other (`dirsync`), so that a file which is renamed has its new name, its old one or
both, and never none. Two names of one file are dangerous: removing one frees the content of the other. So all but the
best are forgotten here, and with them files that were not finished; what no name leads to any more is free again.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_ENTRY = 32
_DELETED, _END = 0xE5, 0x00
_LONG, _VOLUME, _FOLDER = 0x0F, 0x08, 0x10
_MASK, _BAD, _LAST = 0x0FFFFFFF, 0x0FFFFFF7, 0x0FFFFFF8
_CLEAN = 0x0C000000  # in the second entry of the table: nobody was writing
_FREE = 488  # where the second sector says how many clusters are free
_PIECE = 512
_STATE = 0x41  # where the first sector says the same, to Linux
_COUNTED = re.compile(r"(?:-(\d+))?\+(\d+)(?:-\d+)?\.efi$", re.I)


@dataclass(frozen=True, slots=True)
class _File:
    """A name, its first cluster, and where on the partition its entries are, the short one last."""

    path: str
    cluster: int
    folder: bool
    slots: tuple[int, ...]

    @property
    def unfinished(self) -> bool:
        """What is written beside; and the new name of an entry, before it leads to the file."""
        return self.path.endswith(".part") or (not self.cluster and bool(_COUNTED.search(self.path)))

    @property
    def worth(self) -> tuple[bool, int, int]:
        """Of two names of a file the greatest is kept: of boot entries the later one, then that of fewer tries."""
        match = _COUNTED.search(self.path)
        return (match is not None, int(match[1] or 0), -int(match[2])) if match else (False, 0, 0)


def mend_device(device: str) -> list[str]:
    """The same for a block device, unless somebody has it mounted."""
    try:
        handle = os.open(device, os.O_RDWR | os.O_EXCL)
    except OSError:
        return []
    with os.fdopen(handle, "r+b") as disk:
        return mend(disk)


def mend(disk: BinaryIO) -> list[str]:
    """Put the FAT32 filesystem of an opened partition in order; what was done, in words. Anything else is left alone."""
    volume = _Volume.of(disk)
    if volume is None:
        return []
    files = list(volume.files())
    gone = [one for one in files if one.unfinished]
    gone += _other_names(one for one in files if not one.unfinished)
    for one in gone:
        volume.forget(one)
    _sync(disk)
    if gone or not volume.clean:
        volume.free_all_but(one.cluster for one in files if one not in gone)
        volume.mark_clean()
        _sync(disk)
    return [f"{one.path} is forgotten: it was not finished" for one in gone if one.unfinished] + [
        f"{one.path} is forgotten: its file has another name" for one in gone if not one.unfinished
    ]


def _other_names(files: Iterable[_File]) -> list[_File]:
    """All names of each file but the best."""
    named: dict[int, list[_File]] = {}
    for one in files:
        if one.cluster:
            named.setdefault(one.cluster, []).append(one)
    return [one for some in named.values() for one in sorted(some, key=lambda one: one.worth)[:-1]]


class _Volume:
    """A FAT32 filesystem: what its first sector says, and its table."""

    def __init__(self, disk: BinaryIO, boot: bytes) -> None:
        self._disk, self._boot = disk, boot
        self._sector, per_cluster, reserved, self._copies = struct.unpack_from("<HBHB", boot, 11)
        sectors, table = struct.unpack_from("<II", boot, 32)
        self._root, self._info = struct.unpack_from("<IH", boot, 44)
        self._size = per_cluster * self._sector
        self._table_at, self._table_size = reserved * self._sector, table * self._sector
        self._data_at = self._table_at + self._copies * self._table_size
        self._table = array("I", self._read(self._table_at, self._table_size))
        del self._table[(sectors * self._sector - self._data_at) // self._size + 2 :]

    @classmethod
    def of(cls, disk: BinaryIO) -> _Volume | None:
        """The filesystem of an opened partition, None when it is no FAT32."""
        disk.seek(0)
        boot = disk.read(512)
        return cls(disk, boot) if boot[82:90] == b"FAT32   " and boot[510:512] == b"\x55\xaa" else None

    @property
    def clean(self) -> bool:
        """Whether whoever wrote it last came to an end."""
        return not self._boot[_STATE] & 1 and self._table[1] & _CLEAN == _CLEAN

    def files(self) -> Iterator[_File]:
        """Every name, folders included."""
        folders = [("", self._root)]
        for path, cluster in folders:
            for one in self._named(path, cluster):
                yield one
                if one.folder:
                    folders.append((f"{one.path}/", one.cluster))

    def forget(self, file: _File) -> None:
        """Take a name away and leave alone what it leads to; the short entry first, without which the others are nothing."""
        for at in reversed(file.slots):
            self._write(at, bytes([_DELETED]))

    def free_all_but(self, starts: Iterable[int]) -> None:
        """Free every cluster that none of these leads to, unless something else is wrong: then it is not for us to judge."""
        reached: set[int] = set()
        for start in (self._root, *filter(None, starts)):
            chain = self._chain(start)
            if chain is None or not reached.isdisjoint(chain):
                return
            reached.update(chain)
        for cluster, value in enumerate(self._table):
            if cluster > 1 and value & _MASK not in (0, _BAD) and cluster not in reached:
                self._table[cluster] = 0

    def mark_clean(self) -> None:
        """Say that nothing was left half-way."""
        self._table[1] |= _CLEAN
        self._write_table()
        free = struct.pack("<I", self._table.count(0))
        self._write(self._info * self._sector + _FREE, free)
        self._write(_STATE, bytes([self._boot[_STATE] & ~1]))

    def _named(self, parent: str, cluster: int) -> Iterator[_File]:
        """The names in a folder."""
        slots: list[int] = []
        long: list[bytes] = []
        for at, entry in self._entries(cluster):
            if entry[11] == _LONG and entry[0] != _DELETED:
                slots, long = [*slots, at], [entry[1:11] + entry[14:26] + entry[28:32], *long]
                continue
            if entry[0] not in (_DELETED, ord(".")) and not entry[11] & _VOLUME:
                first = struct.unpack_from("<H", entry, 20)[0] << 16 | struct.unpack_from("<H", entry, 26)[0]
                name = _long(long) or _short(entry)
                yield _File(f"{parent}{name}", first, bool(entry[11] & _FOLDER), (*slots, at))
            slots, long = [], []

    def _entries(self, cluster: int) -> Iterator[tuple[int, bytes]]:
        for one in self._chain(cluster) or []:
            place = self._data_at + (one - 2) * self._size
            data = self._read(place, self._size)
            for at in range(0, self._size, _ENTRY):
                if data[at] == _END:
                    return
                yield place + at, data[at : at + _ENTRY]

    def _chain(self, cluster: int) -> list[int] | None:
        """The clusters that follow one another from here; None when they do not come to an end."""
        found: dict[int, None] = {}
        while cluster < _LAST:
            if not 2 <= cluster < len(self._table) or cluster in found:
                return None
            found[cluster] = None
            cluster = self._table[cluster] & _MASK
        return list(found)

    def _write_table(self) -> None:
        """What changed of it, into each of its copies."""
        new = self._table.tobytes()
        for copy in range(self._copies):
            place = self._table_at + copy * self._table_size
            old = self._read(place, len(new))
            for at in range(0, len(new), _PIECE):
                if new[at : at + _PIECE] != old[at : at + _PIECE]:
                    self._write(place + at, new[at : at + _PIECE])

    def _read(self, at: int, length: int) -> bytes:
        self._disk.seek(at)
        return self._disk.read(length)

    def _write(self, at: int, data: bytes) -> None:
        self._disk.seek(at)
        self._disk.write(data)


def _long(parts: list[bytes]) -> str:
    return b"".join(parts).decode("utf-16-le", "replace").partition("\0")[0].rstrip("\uffff")


def _short(entry: bytes) -> str:
    name, extension = (entry[at:end].decode("ascii", "replace").rstrip() for at, end in ((0, 8), (8, 11)))
    return f"{name}.{extension}" if extension else name


def _sync(disk: BinaryIO) -> None:
    disk.flush()
    os.fsync(disk.fileno())
