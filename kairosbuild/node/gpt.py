"""A disk's GUID partition table, read and checked, and its last partition grown to the disk's end."""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from kairosbuild.node.problem import Problem

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LAYERS = "6b62756c-6400-4c61-9e0f-6c6179657273"
ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
ROOT_VERITY = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
SECTOR = 512
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ALIGN = 2048  # sectors


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; sectors, the last included."""

    number: int
    type: str
    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Table:
    """The header's fields that matter, the entries as they are, and what they say."""

    header: bytes
    entries: bytes
    partitions: tuple[Partition, ...]
    last_usable: int


def read(file: BinaryIO) -> Table:
    """The primary table. Raises Problem `bad-partition-table`."""
    file.seek(SECTOR)
    header = file.read(SECTOR)
    fields = _HEADER.unpack_from(header)
    checksum, at, count, size = fields[3], fields[10], fields[11], fields[12]
    zeroed = header[:16] + bytes(4) + header[20 : fields[2]]
    if fields[0] != b"EFI PART" or zlib.crc32(zeroed) != checksum or not 128 <= size <= 4096:
        raise Problem("the disk has no proper partition table", reason="bad-partition-table")
    file.seek(at * SECTOR)
    entries = file.read(count * size)
    found = []
    for number in range(count):
        kind, _, first, last, _, name = struct.unpack_from("<16s16sQQQ72s", entries, number * size)
        if any(kind):
            label = name.decode("utf-16-le", "replace").rstrip("\0")
            found.append(Partition(number + 1, str(uuid.UUID(bytes_le=kind)), label, first, last))
    return Table(header[: fields[2]], entries, tuple(found), fields[8])


def grow_last(file: BinaryIO, number: int) -> Partition | None:
    """Move the table's end to the disk's and stretch the last partition, when it is this one.

    None when it is as large as it can be. The backup is written first: whichever write the power cuts off,
    one of the two tables is whole.
    """
    table = read(file)
    sectors = file.seek(0, os.SEEK_END) // SECTOR
    last = max(table.partitions, key=lambda one: one.first)
    end = (sectors - 34 + 1) // _ALIGN * _ALIGN - 1
    if last.number != number or end <= last.last:
        return None
    at = (last.number - 1) * 128
    entries = bytearray(table.entries)
    struct.pack_into("<Q", entries, at + 40, end)
    _write(file, table, bytes(entries), here=sectors - 1, other=1, entries_at=sectors - 33, sectors=sectors)
    _write(file, table, bytes(entries), here=1, other=sectors - 1, entries_at=2, sectors=sectors)
    return Partition(last.number, last.type, last.name, last.first, end)


def _write(
    file: BinaryIO, table: Table, entries: bytes, *, here: int, other: int, entries_at: int, sectors: int
) -> None:
    fields = list(_HEADER.unpack_from(table.header))
    fields[3], fields[5], fields[6], fields[8], fields[10] = 0, here, other, sectors - 34, entries_at
    fields[13] = zlib.crc32(entries)
    fields[3] = zlib.crc32(_HEADER.pack(*fields))
    file.seek(entries_at * SECTOR)
    file.write(entries)
    file.seek(here * SECTOR)
    file.write(_HEADER.pack(*fields).ljust(SECTOR, b"\0"))
    file.flush()
    os.fsync(file.fileno())
