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
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
ROOT_VERITY_X86_64 = uuid.UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5")
ROOT_VERITY_SIG_X86_64 = uuid.UUID("41092b05-9fc8-4523-994f-2def0408b176")
HOME = uuid.UUID("933ac7e1-2eb4-4f13-b844-0e14e2aef915")
SRV = uuid.UUID("3b8f8425-20e0-4f3b-907f-1a25a76f98e8")
VAR = uuid.UUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d")
SWAP = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
LAYERS = uuid.UUID("6b62756c-6400-4c61-9e0f-6c6179657273")
"""The type of a layers partition, this project's own as the next two, so that nothing mounts it by discovery."""
RECOVERY = uuid.UUID("6b62756c-6400-4c61-9e0f-7265636f7679")
PERSISTENT = uuid.UUID("6b62756c-6400-4c61-9e0f-706572736973")


@dataclass(frozen=True, slots=True)
class Partition:
    """Start and size in bytes (whole sectors), type, identity and name (36 characters at most)."""

    type: uuid.UUID
    identity: uuid.UUID
    name: str
    start: int
    size: int


def build(
    disk: int, identity: uuid.UUID, partitions: Sequence[Partition], sector: int = SECTOR
) -> tuple[tuple[int, bytes], ...]:
    """What is written where, as (offset, bytes), for a disk of so many bytes in sectors of this size."""
    return _Table(disk, identity, sector, b"".join(_entry(one, sector) for one in partitions)).pieces()


@dataclass(frozen=True, slots=True)
class _Table:
    disk: int
    identity: uuid.UUID
    sector: int
    entries: bytes

    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        table = self.entries.ljust(ENTRIES * 128, b"\0")
        sectors, length = self.disk // self.sector, len(table) // self.sector
        primary = self._header(table, here=1, other=sectors - 1, entries=2)
        backup = self._header(table, here=sectors - 1, other=1, entries=sectors - 1 - length)
        protective = _protective(sectors).ljust(self.sector, b"\0")
        at = (sectors - 1 - length) * self.sector
        return ((0, protective + primary + table), (at, table + backup))

    def _header(self, table: bytes, *, here: int, other: int, entries: int) -> bytes:
        sectors, length = self.disk // self.sector, len(table) // self.sector

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
                2 + length,
                sectors - 2 - length,
                self.identity.bytes_le,
                entries,
                ENTRIES,
                128,
                zlib.crc32(table),
            )

        return pack(zlib.crc32(pack(0))).ljust(self.sector, b"\0")


def _entry(one: Partition, sector: int) -> bytes:
    first, last = one.start // sector, (one.start + one.size) // sector - 1
    return struct.pack(
        "<16s16sQQQ72s",
        one.type.bytes_le,
        one.identity.bytes_le,
        first,
        last,
        0,
        one.name.encode("utf-16-le"),
    )


def _protective(sectors: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
