"""An ISO 9660 filesystem written at once from a list of files, with Rock Ridge names and what firmware starts.

xorriso makes the same by reading every file in pieces of 2048 bytes through a pipe between two threads. Here the
places of the files are the result, and whoever writes the disk puts the bytes there. ECMA-119 (level 3), IEEE P1282
(Rock Ridge), "El Torito" bootable CD-ROM format specification 1.0.
"""

from __future__ import annotations

import posixpath
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.boot.fat import Extent

BLOCK = 2048
DESCRIPTORS = 16  # the block of the first descriptor: what is before belongs to the system that starts it
BIOS, UEFI = 0, 0xEF
_CATALOG, _FIRST = 19, 20  # blocks: of the boot catalog, of the first path table
_SECTION = 0xFFFFF800  # the most bytes that one record can name, in whole blocks
_FOLDER, _CONTINUED = 0x02, 0x80
_PLAIN = re.compile(r"[A-Z0-9][A-Z0-9_]{0,7}(\.[A-Z0-9_]{1,3})?")
_UNSAID = b"0" * 16 + b"\0"  # a date that nobody gave


@dataclass(frozen=True, slots=True)
class Volume:
    """Label (32 characters of A-Z, 0-9 and _ at most), timestamp, and the bytes that firmware may look at."""

    label: str
    epoch: int
    size: int


@dataclass(frozen=True, slots=True)
class Boot:
    """What a firmware of this platform is to start: where it lies, and how many sectors of 512 bytes it loads.

    Without a number it takes what the volume has from there on.
    """

    platform: int
    start: int
    sectors: int = 0


class Tree:
    """Files by path and size, laid out: `at` tells where the bytes of each go, `end` where the last one ends."""

    def __init__(self, files: Mapping[str, int]) -> None:
        self._files = dict(sorted(files.items()))
        self._inside = _folders(self._files)
        self._named = {p: n for folder in self._inside.values() for p, n in _identifiers(folder, self._files)}
        self._order = _by_level(self._inside, self._named)
        block = _FIRST + 2 * _blocks(len(self._path_table("<", dict.fromkeys(self._order, 0))))
        self._folders: dict[str, tuple[int, int]] = {"": (0, 0)}
        for folder in self._order:  # how long a folder is does not depend on where things lie
            length = len(self._folder(folder, dict.fromkeys((*self._files, *self._order), (0, 0)), 0))
            self._folders[folder] = block, length
            block += _blocks(length)
        self.at: dict[str, int] = {}
        for path, size in self._files.items():
            block += block % 2  # 4096 bytes, so that file systems can share the extents of what is put there
            self.at[path] = block * BLOCK
            block += _blocks(size)
        self.end = block * BLOCK

    def pieces(self, volume: Volume, boots: Sequence[Boot]) -> Iterator[Extent]:
        """The filesystem's own bytes; those of the files are the caller's to put there."""
        folders = {folder: block for folder, (block, _) in self._folders.items()}
        little, big = (self._path_table(order, folders) for order in "<>")
        tables = _FIRST, _FIRST + _blocks(len(little))
        root = _record(b"\0", *self._folders[""], _FOLDER, volume.epoch)
        yield DESCRIPTORS * BLOCK, _primary(volume, len(little), tables, root)
        yield (DESCRIPTORS + 1) * BLOCK, _boot_record()
        yield (DESCRIPTORS + 2) * BLOCK, b"\xffCD001\1".ljust(BLOCK, b"\0")
        yield _CATALOG * BLOCK, _catalog(boots)
        yield tables[0] * BLOCK, little
        yield tables[1] * BLOCK, big
        places = {path: (at // BLOCK, self._files[path]) for path, at in self.at.items()} | self._folders
        for folder in self._order:
            yield self._folders[folder][0] * BLOCK, self._folder(folder, places, volume.epoch)

    def _folder(self, folder: str, places: Mapping[str, tuple[int, int]], epoch: int) -> bytes:
        """The records of a folder: itself, its parent, then what is in it by identifier."""
        records = [
            _record(b"\0", *places[folder], _FOLDER, epoch, _ridge(epoch, folder=True, root=not folder)),
            _record(b"\1", *places[posixpath.dirname(folder)], _FOLDER, epoch, _ridge(epoch, folder=True)),
        ]
        for path in sorted(self._inside[folder], key=self._named.__getitem__):
            name = posixpath.basename(path)
            if path in self._inside:
                ridge = _ridge(epoch, name, folder=True)
                records.append(_record(self._named[path], *places[path], _FOLDER, epoch, ridge))
            else:
                block = places[path][0]
                records += _sections(self._named[path], block, self._files[path], epoch, _ridge(epoch, name))
        return _packed(records)

    def _path_table(self, order: str, blocks: Mapping[str, int]) -> bytes:
        """Every folder with the number of its parent, numbers little-endian or big-endian."""
        numbers = {folder: number for number, folder in enumerate(self._order, 1)}
        rows = []
        for folder in self._order:
            name, parent = self._named.get(folder, b"\0"), numbers[posixpath.dirname(folder)]
            rows.append(struct.pack(f"{order}BBIH", len(name), 0, blocks[folder], parent) + _even(name))
        return b"".join(rows)


def _folders(files: Iterable[str]) -> dict[str, set[str]]:
    """Each folder, the root ("") among them, and the paths in it."""
    inside: dict[str, set[str]] = {"": set()}
    for path in files:
        parent = path
        while parent:
            child, parent = parent, posixpath.dirname(parent)
            inside.setdefault(parent, set()).add(child)
    return inside


def _identifiers(paths: Iterable[str], files: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """The name of each path where Rock Ridge is not read: itself where it can be, else made from its place."""
    taken: set[str] = set()
    for number, path in enumerate(sorted(paths), 1):
        plain = posixpath.basename(path).upper()
        if plain in taken or not _PLAIN.fullmatch(plain) or (path not in files and "." in plain):
            plain = f"_{number:06}"
        taken.add(plain)
        dot = "" if "." in plain else "."
        yield path, f"{plain}{dot};1".encode() if path in files else plain.encode()


def _by_level(inside: Mapping[str, set[str]], named: Mapping[str, bytes]) -> list[str]:
    """Every folder as a path table has them: level by level, in the order of their parents."""
    order = [""]
    for folder in order:
        order += sorted((one for one in inside[folder] if one in inside), key=named.__getitem__)
    return order


# -- records ---------------------------------------------------------------------------------------


def _sections(name: bytes, block: int, size: int, epoch: int, ridge: bytes) -> Iterator[bytes]:
    """The records of a file: one, and one more for each 4 GiB that lie beyond."""
    while size > _SECTION:
        yield _record(name, block, _SECTION, _CONTINUED, epoch, ridge)
        block, size = block + _SECTION // BLOCK, size - _SECTION
    yield _record(name, block, size, 0, epoch, ridge)


def _record(name: bytes, block: int, size: int, flags: int, epoch: int, ridge: bytes = b"") -> bytes:
    found = _both(block) + _both(size) + _date(epoch) + struct.pack("<BBB", flags, 0, 0) + _both16(1)
    padded = name if len(name) % 2 else name + b"\0"
    body = b"\0" + found + bytes([len(name)]) + padded + _even(ridge)
    return bytes([len(body) + 1]) + body


def _ridge(epoch: int, name: str = "", *, folder: bool = False, root: bool = False) -> bytes:
    """Rock Ridge: mode and owner, time, name; in the root before them that there is such a thing."""
    mode, links = (0o40555, 2) if folder else (0o100444, 1)
    found = b"SP\7\1\xbe\xef\0" if root else b""
    found += b"PX\x24\1" + _both(mode) + _both(links) + _both(0) + _both(0)
    found += b"TF\x0c\1\2" + _date(epoch)
    if name:
        found += struct.pack("<2sBBB", b"NM", 5 + len(name.encode()), 1, 0) + name.encode()
    return found + (b"ER\x12\1\x0a\0\0\1RRIP_1991A" if root else b"")


def _packed(records: Iterable[bytes]) -> bytes:
    """Records one behind the other, none over the end of a block."""
    out = bytearray()
    for one in records:
        left = -len(out) % BLOCK
        out += (bytes(left) if left < len(one) else b"") + one
    return bytes(out) + bytes(-len(out) % BLOCK)


def _date(epoch: int) -> bytes:
    at = time.gmtime(epoch)
    return bytes([at.tm_year - 1900, at.tm_mon, at.tm_mday, at.tm_hour, at.tm_min, at.tm_sec, 0])


# -- descriptors -----------------------------------------------------------------------------------


def _primary(volume: Volume, table: int, tables: tuple[int, int], root: bytes) -> bytes:
    date = time.strftime("%Y%m%d%H%M%S00", time.gmtime(volume.epoch)).encode() + b"\0"
    return b"".join(
        (
            b"\1CD001\1\0".ljust(40),  # no system is named
            volume.label.encode().ljust(32),
            bytes(8),
            _both(volume.size // BLOCK),
            bytes(32),
            _both16(1) + _both16(1) + _both16(BLOCK),
            _both(table),
            struct.pack("<II", tables[0], 0) + struct.pack(">II", tables[1], 0),
            root,
            b" " * (4 * 128 + 3 * 37),  # nor who made it and what is said of it
            date + date + _UNSAID + _UNSAID,
            b"\1",
        )
    ).ljust(BLOCK, b"\0")


def _boot_record() -> bytes:
    head = b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0")
    return (head + struct.pack("<I", _CATALOG)).ljust(BLOCK, b"\0")


def _catalog(boots: Sequence[Boot]) -> bytes:
    """The first one is every firmware's that finds no better, each further one has a section of its own."""
    first, *others = boots
    head = struct.pack("<BBH24sHH", 1, first.platform, 0, b"", 0, 0xAA55)
    total = sum(struct.unpack("<16H", head)) & 0xFFFF
    found = head[:28] + struct.pack("<H", -total & 0xFFFF) + head[30:] + _started(first)
    for number, one in enumerate(others, 1):
        found += struct.pack("<BBH28x", 0x91 if number == len(others) else 0x90, one.platform, 1) + _started(
            one
        )
    return found.ljust(BLOCK, b"\0")


def _started(one: Boot) -> bytes:
    return struct.pack("<BBHBBHI20x", 0x88, 0, 0, 0, 0, one.sectors, one.start // BLOCK)


# -- numbers ---------------------------------------------------------------------------------------


def _both(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both16(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _even(data: bytes) -> bytes:
    return data + bytes(len(data) % 2)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)
