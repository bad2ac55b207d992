"""A GUID partition table: protective MBR, primary table, backup. UEFI specification 2.10, chapter 5."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

SECTOR = 512
ENTRIES = 128
ALIGN = 1 << 20  # partitions begin at whole MiB
TAIL = 33 * SECTOR  # the backup table and its header
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LAYERS = uuid.UUID("6b62756c-6400-4c61-9e0f-6c6179657273")
"""The type of a layers partition, this project's own, so that nothing mounts it by discovery."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Start and size in bytes (whole sectors), type, identity and name (36 characters at most)."""

    type: uuid.UUID
    identity: uuid.UUID
    name: str
    start: int
    size: int


def build(disk: int, identity: uuid.UUID, partitions: Sequence[Partition]) -> tuple[tuple[int, bytes], ...]:
    """What is written where, as (offset, bytes), for a disk of so many bytes."""
    sectors = disk // SECTOR
    table = b"".join(map(_entry, partitions)).ljust(ENTRIES * 128, b"\0")
    primary = _header(sectors, identity, table, here=1, other=sectors - 1, entries=2)
    backup = _header(sectors, identity, table, here=sectors - 1, other=1, entries=sectors - 33)
    return ((0, _protective(sectors) + primary + table), (disk - TAIL, table + backup))


def _entry(one: Partition) -> bytes:
    first, last = one.start // SECTOR, (one.start + one.size) // SECTOR - 1
    return struct.pack(
        "<16s16sQQQ72s",
        one.type.bytes_le,
        one.identity.bytes_le,
        first,
        last,
        0,
        one.name.encode("utf-16-le"),
    )


def _header(sectors: int, identity: uuid.UUID, table: bytes, *, here: int, other: int, entries: int) -> bytes:
    def pack(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x10000,
            92,
            checksum,
            0,
            here,
            other,
            34,
            sectors - 34,
            identity.bytes_le,
            entries,
            ENTRIES,
            128,
            zlib.crc32(table),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _protective(sectors: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
