"""A FAT32 filesystem written at once from a list of files: what an EFI system partition is.

mkfs.vfat and mcopy make the same; this takes no program, no clock, no serial number from the air, and
writes nothing but what is used. Every file is contiguous. <https://uefi.org/specs/UEFI/2.10/13_Protocols_Media_Access.html>,
Microsoft's "FAT32 File System Specification" (2000).
"""

from __future__ import annotations

import posixpath
import re
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kairosbuild.core.errors import KbuildError

RESERVED = 32  # sectors before the first table
LEAST = 65525  # clusters below which drivers take a filesystem for FAT16
_END = 0x0FFFFFFF
_CLUSTER = 4096  # bytes of the largest cluster
_MIB = 1 << 20
_SHORT = re.compile(r"[A-Z0-9_~-]{1,8}(\.[A-Z0-9_~-]{1,3})?")
_DIRECTORY, _ARCHIVE, _LONG, _VOLUME = 0x10, 0x20, 0x0F, 0x08

Extent = tuple[int, bytes]
"""Byte offset in the filesystem, and what is written there; all else is zero."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Size in bytes (whole sectors), label (11 characters at most), serial number and timestamp."""

    size: int
    label: str
    serial: int
    epoch: int = 0
    hidden: int = 0  # sectors before the partition
    sector: int = 512  # bytes; a kernel mounts none with smaller ones than its device has


@dataclass(frozen=True, slots=True)
class _Geometry:
    sector: int
    sectors: int
    per_cluster: int
    table: int  # sectors of one table
    clusters: int

    def at(self, cluster: int) -> int:
        return (RESERVED + 2 * self.table + (cluster - 2) * self.per_cluster) * self.sector

    @property
    def bytes(self) -> int:
        return self.per_cluster * self.sector


def build(volume: Volume, files: Mapping[str, bytes]) -> Iterator[Extent]:
    """The filesystem's used bytes in rising order. Raises `fat-size` when it is too small."""
    geometry = _geometry(volume)
    folders = _folders(files)
    starts, chain, used = _allocate(volume, folders, files, geometry)
    table = struct.pack(f"<{len(chain)}I", *chain)
    boot, sector = _boot_sector(volume, geometry), volume.sector
    info = _info_sector(geometry.clusters - used, 2 + used, sector)
    yield 0, boot
    yield sector, info
    yield 6 * sector, boot
    yield 7 * sector, info
    yield RESERVED * sector, table
    yield (RESERVED + geometry.table) * sector, table
    for folder, names in folders.items():
        yield geometry.at(starts[folder]), _directory(volume, folder, names, starts, files)
    for path in sorted(files):
        if files[path]:
            yield geometry.at(starts[path]), files[path]


def least(sizes: Iterable[int], sector: int = 512) -> int:
    """Bytes, in whole MiB, that hold files of these sizes, folders included."""
    wanted = sum(-(-size // _CLUSTER) + 2 for size in sizes) + 16
    clusters = max(wanted, LEAST) if sector == _CLUSTER else wanted
    size = -(-max(clusters * _CLUSTER, LEAST * sector) // _MIB) * _MIB
    while (found := _fitting(size, sector)) is None or found.clusters * found.bytes < wanted * _CLUSTER:
        size += _MIB
    return size


def _geometry(volume: Volume) -> _Geometry:
    """The largest clusters, 4 KiB at most, that still make it FAT32."""
    if found := _fitting(volume.size, volume.sector):
        return found
    raise KbuildError(
        f"{volume.size} bytes are too few for a FAT32 filesystem",
        reason="fat-size",
        hint=f"{least((), volume.sector) // _MIB}M is the least an EFI system partition can be",
    )


def _fitting(size: int, sector: int) -> _Geometry | None:
    sectors = size // sector
    for per_cluster in (8, 4, 2, 1):
        table = -(-(sectors - RESERVED + 2 * per_cluster) * 4 // (sector * per_cluster + 8))
        clusters = (sectors - RESERVED - 2 * table) // per_cluster
        if clusters >= LEAST and per_cluster * sector <= _CLUSTER:
            return _Geometry(sector, sectors, per_cluster, table, clusters)
    return None


def _folders(files: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Each folder, the root ("") first, and the sorted paths in it."""
    inside: dict[str, set[str]] = {"": set()}
    for path in files:
        parent = path
        while parent:
            child, parent = parent, posixpath.dirname(parent)
            inside.setdefault(parent, set()).add(child)
    return {folder: sorted(inside[folder]) for folder in sorted(inside)}


def _allocate(
    volume: Volume, folders: Mapping[str, list[str]], files: Mapping[str, bytes], geometry: _Geometry
) -> tuple[dict[str, int], list[int], int]:
    """First cluster of everything, the allocation table, how many clusters are used."""
    starts: dict[str, int] = {}
    chain = [0x0FFFFFF8, _END]
    sizes = {folder: _directory_size(folder, names) for folder, names in folders.items()}
    sizes |= {path: len(files[path]) for path in sorted(files)}
    for path, size in sizes.items():
        count = -(-size // geometry.bytes)
        starts[path] = len(chain) if count else 0
        chain += [*range(len(chain) + 1, len(chain) + count), _END][:count] if count else []
    used = len(chain) - 2
    if used > geometry.clusters:
        raise KbuildError(
            f"{sum(sizes.values())} bytes of files do not fit an EFI partition of {volume.size}",
            reason="fat-size",
            hint=f"{least(sizes.values(), volume.sector) // _MIB}M is the least",
        )
    return starts, chain, used


def _boot_sector(volume: Volume, geometry: _Geometry) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x58\x90",
        b"MSWIN4.1",
        volume.sector,
        geometry.per_cluster,
        RESERVED,
        2,
        0,
        0,
        0xF8,
        0,
        63,
        255,
        volume.hidden,
        geometry.sectors,
    )
    more = struct.pack(
        "<IHHIHH12xBBBI11s8s",
        geometry.table,
        0,
        0,
        2,
        1,
        6,
        0x80,
        0,
        0x29,
        volume.serial,
        _label(volume),
        b"FAT32   ",
    )
    return ((head + more).ljust(510, b"\0") + b"\x55\xaa").ljust(volume.sector, b"\0")


def _info_sector(free: int, following: int, sector: int) -> bytes:
    found = struct.pack("<4s480x4sII12x4s", b"RRaA", b"rrAa", free, following, b"\0\0\x55\xaa")
    return found.ljust(sector, b"\0")


def _directory_size(folder: str, names: list[str]) -> int:
    special = 2 if folder else 1
    return 32 * (special + sum(1 + _long_count(posixpath.basename(name)) for name in names))


def _directory(
    volume: Volume, folder: str, names: list[str], starts: Mapping[str, int], files: Mapping[str, bytes]
) -> bytes:
    """The entries of a folder: itself and its parent (or the label), then each name, long form first."""
    if folder:
        parent = starts[posixpath.dirname(folder)] if posixpath.dirname(folder) else 0
        parts = [
            _entry(b".          ", _DIRECTORY, starts[folder], 0, volume.epoch),
            _entry(b"..         ", _DIRECTORY, parent, 0, volume.epoch),
        ]
    else:
        parts = [_entry(_label(volume), _VOLUME, 0, 0, volume.epoch)]
    for number, path in enumerate(names, 1):
        name = posixpath.basename(path)
        short = _short(name, number)
        kind, size = (_ARCHIVE, len(files[path])) if path in files else (_DIRECTORY, 0)
        parts += [*_long(name, short), _entry(short, kind, starts[path], size, volume.epoch)]
    return b"".join(parts)


def _entry(short: bytes, attributes: int, cluster: int, size: int, epoch: int) -> bytes:
    date, clock = _dos_time(epoch)
    return struct.pack(
        "<11sBBBHHHHHHHI",
        short,
        attributes,
        0,
        0,
        clock,
        date,
        date,
        cluster >> 16,
        clock,
        date,
        cluster & 0xFFFF,
        size,
    )


def _dos_time(epoch: int) -> tuple[int, int]:
    """FAT knows no time before 1980."""
    at = time.gmtime(max(epoch, 315532800))
    return (
        at.tm_year - 1980
    ) << 9 | at.tm_mon << 5 | at.tm_mday, at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2


def _short(name: str, number: int) -> bytes:
    """The 8.3 name: itself where it is one, else made from its place in the folder."""
    if _SHORT.fullmatch(name):
        base, _, extension = name.partition(".")
        return base.ljust(8).encode() + extension.ljust(3).encode()
    extension = re.sub(r"[^A-Z0-9]", "", posixpath.splitext(name)[1].upper())[:3]
    return f"K~{number:06}".encode() + extension.ljust(3).encode()


def _long_count(name: str) -> int:
    return 0 if _SHORT.fullmatch(name) else -(-len(name.encode("utf-16-le")) // 26)


def _long(name: str, short: bytes) -> Iterator[bytes]:
    """The entries of a long name, last part first."""
    total = 0
    for byte in short:
        total = ((total >> 1) + ((total & 1) << 7) + byte) & 0xFF
    text = name.encode("utf-16-le")
    count = _long_count(name)
    padded = text if len(text) == count * 26 else (text + b"\0\0").ljust(count * 26, b"\xff")
    for number in range(count, 0, -1):
        part = padded[(number - 1) * 26 : number * 26]
        yield struct.pack(
            "<B10sBBB12sH4s",
            number | (0x40 if number == count else 0),
            part[:10],
            _LONG,
            0,
            total,
            part[10:22],
            0,
            part[22:],
        )


def _label(volume: Volume) -> bytes:
    return volume.label.upper()[:11].ljust(11).encode()
