"""The command line that a machine starts with: of a unified kernel image, or of the one in a disk or an ISO image.

A file is read at a few places and never as a whole, so that it need not be here: a range of a blob will do. Whoever
made it, nothing in it is believed: what does not hold together has no command line.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from kairosbuild.boot import gpt, uki
from kairosbuild.core.errors import KbuildError

Read = Callable[[int, int], bytes]
"""(offset, length) → bytes; fewer at the end."""

_BLOCK = 256 << 10  # bytes asked for at once
_HEAD = 8192  # bytes of a PE image that have its headers
_MOST = 64 << 10  # bytes of a command line
_LARGEST = 16 << 20  # bytes of a table that is still read
_FOLDER = 2 << 20  # bytes of a folder, by the specification
_RECOVERY = "kbuild.recovery"  # in the command line of the entry of last resort


def cmdline(read: Read) -> str | None:
    """The command line, None where there is none to be found."""
    read = _in_blocks(read)
    try:
        return _of_uki(read) or _of_disk(_unpacked(read))
    except (struct.error, ValueError, IndexError):
        return None


def _in_blocks(read: Read) -> Read:
    """The same, each block asked for once: what is looked at lies close together."""

    @lru_cache(64)
    def block(number: int) -> bytes:
        return read(number * _BLOCK, _BLOCK)

    def through(offset: int, length: int) -> bytes:
        blocks = range(offset // _BLOCK, (offset + max(length, 1) - 1) // _BLOCK + 1)
        at = offset - blocks.start * _BLOCK
        return b"".join(map(block, blocks))[at : at + length]

    return through


def _of_uki(read: Read) -> str:
    """The command line of a unified kernel image, "" for any other file."""
    try:
        found = {one.name: one for one in uki.sections(read(0, _HEAD))}
    except (KbuildError, struct.error):
        return ""
    if not (one := found.get(".cmdline")):
        return ""
    text = read(one.offset, min(one.size, one.stored, _MOST))
    return text.rstrip(b"\0").decode("utf-8", "replace").strip()


def _of_disk(disk: Read) -> str | None:
    """That of the newest boot entry, or of what firmware starts by itself."""
    for start in _esps(disk):
        tree = _Fat(_from(disk, start))
        linux, boot = (tree.folder("EFI", name) for name in ("LINUX", "BOOT"))
        entries = [linux[name] for name in sorted(linux, reverse=True) if name.endswith(".EFI")]
        for line in map(_of_uki, [*entries, *(boot[name] for name in boot if name == "BOOTX64.EFI")]):
            if line and _RECOVERY not in line.split():
                return line
    return None


def _from(read: Read, start: int) -> Read:
    return lambda offset, length: read(start + offset, length)


def _esps(disk: Read) -> Iterator[int]:
    """Where the EFI system partitions begin."""
    for sector in (512, 4096):
        header = disk(sector, 92)
        if header[:8] == b"EFI PART":
            at, count, size = struct.unpack_from("<QII", header, 72)
            table = disk(at * sector, min(count * size, _LARGEST))
            for place in range(0, len(table) - 127, max(size, 128)):
                if table[place : place + 16] == gpt.ESP.bytes_le:
                    yield struct.unpack_from("<Q", table, place + 32)[0] * sector


# -- files in pieces -------------------------------------------------------------------------------


def _pieces(read: Read, size: int, place: Callable[[int], int]) -> Read:
    """A file of pieces of this size, each at its place in another one; 0 is the place of zeros."""

    def one(number: int) -> bytes:
        at = place(number)
        return read(at, size) if at else bytes(size)

    def through(offset: int, length: int) -> bytes:
        first, last = offset // size, (offset + max(length, 1) - 1) // size
        return b"".join(map(one, range(first, last + 1)))[offset % size :][:length]

    return through


def _unpacked(read: Read) -> Read:
    """The disk in a file: the file itself, unless it is a qcow2 or a VMDK. Raises ValueError for what is compressed."""
    magic = read(0, 4)
    if magic == b"QFI\xfb":
        return _qcow2(read)
    return _vmdk(read) if magic == b"KDMV" else read


def _qcow2(read: Read) -> Read:
    bits, _, _, _, l1 = struct.unpack_from(">IQIIQ", read(0, 48), 20)
    if not 9 <= bits <= 21:
        raise ValueError("no cluster is that large")
    size = 1 << bits

    def place(number: int) -> int:
        table = _entry(read, ">Q", l1, number // (size // 8)) & _ADDRESS
        at = _entry(read, ">Q", table, number % (size // 8)) if table else 0
        if at & _COMPRESSED:
            raise ValueError("compressed")
        return at & _ADDRESS

    return _pieces(read, size, place)


_ADDRESS, _COMPRESSED = 0x00FFFFFFFFFFFE00, 1 << 62


def _vmdk(read: Read) -> Read:
    flags, _, grain = struct.unpack_from("<IQQ", read(0, 64), 8)
    entries, _, directory = struct.unpack_from("<IQQ", read(0, 64), 44)
    if flags & 0x10000 or not 0 < grain <= 2048 or not entries:
        raise ValueError("compressed, or in no grains")

    def place(number: int) -> int:
        table = _entry(read, "<I", directory * 512, number // entries) * 512
        return _entry(read, "<I", table, number % entries) * 512 if table else 0

    return _pieces(read, grain * 512, place)


def _entry(read: Read, form: str, table: int, number: int) -> int:
    width = struct.calcsize(form)
    return int(struct.unpack(form, read(table + number * width, width))[0])


# -- FAT32 -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    cluster: int
    folder: bool


class _Fat:
    """A FAT32 filesystem, as an EFI system partition is. Names are compared in capitals."""

    def __init__(self, read: Read) -> None:
        sector, per_cluster, reserved, copies = struct.unpack_from("<HBHB", read(0, 90), 11)
        length, self._root = struct.unpack_from("<I4xI", read(0, 90), 36)
        self._read, self._size = read, sector * per_cluster
        if not 0 < self._size <= _BLOCK:
            raise ValueError("no FAT32")
        self._table = read(reserved * sector, min(length * sector, _LARGEST))
        self._data = (reserved + copies * length) * sector

    def folder(self, *path: str) -> dict[str, Read]:
        """The files of a folder; none where there is no such folder."""
        inside = self._entries(self._root)
        for name in path:
            found = inside.get(name)
            inside = self._entries(found.cluster) if found and found.folder else {}
        return {name: self._file(one.cluster) for name, one in inside.items() if not one.folder}

    def _chain(self, cluster: int) -> Iterator[int]:
        while 2 <= cluster < 0x0FFFFFF7:
            yield cluster
            cluster = struct.unpack_from("<I", self._table, 4 * cluster)[0] & 0x0FFFFFFF

    def _clusters(self, cluster: int) -> list[int]:
        """Where a file's clusters are, as many as there can be."""
        chain = islice(self._chain(cluster), len(self._table) // 4)
        return [self._data + (number - 2) * self._size for number in chain]

    def _file(self, cluster: int) -> Read:
        places = self._clusters(cluster)
        return _pieces(self._read, self._size, lambda number: places[number])

    def _entries(self, cluster: int) -> dict[str, _Entry]:
        data = b"".join(self._read(at, self._size) for at in self._clusters(cluster)[: _FOLDER // self._size])
        found: dict[str, _Entry] = {}
        long = b""
        for at in range(0, len(data) - 31, 32):
            entry = data[at : at + 32]
            if entry[0] == 0:
                break
            if entry[0] == 0xE5:
                long = b""
            elif entry[11] == 0x0F:  # a part of a long name; the last one comes first
                long = entry[1:11] + entry[14:26] + entry[28:32] + long
            else:
                high, low = struct.unpack_from("<H4xH", entry, 20)
                found[_name(entry, long).upper()] = _Entry(high << 16 | low, bool(entry[11] & 0x10))
                long = b""
        return found


def _name(entry: bytes, long: bytes) -> str:
    if long:
        return long.decode("utf-16-le", "replace").partition("\0")[0]
    base, extension = (part.decode("latin-1").rstrip() for part in (entry[:8], entry[8:11]))
    return f"{base}.{extension}" if extension else base
