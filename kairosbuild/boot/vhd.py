"""A fixed VHD: the raw disk and a footer. Azure wants the disk to be whole MiB, which a laid-out one is.

Microsoft, "Virtual Hard Disk Image Format Specification" 1.0.
"""

from __future__ import annotations

import struct
import uuid

_EPOCH = 946684800  # its clock begins with the year 2000
_FIXED = 2


def footer(size: int, identity: uuid.UUID, epoch: int) -> bytes:
    """What stands behind a disk of so many bytes."""

    def pack(checksum: int) -> bytes:
        return struct.pack(
            ">8sIIQI4sI4sQQHBBII16sB427x",
            b"conectix",
            2,
            0x10000,
            0xFFFFFFFFFFFFFFFF,
            max(0, epoch - _EPOCH),
            b"win ",  # readers that know it take the size from the footer, not from the geometry
            0x000A0000,
            b"Wi2k",
            size,
            size,
            *_geometry(size // 512),
            _FIXED,
            checksum,
            identity.bytes,
            0,
        )

    return pack(~sum(pack(0)) & 0xFFFFFFFF)


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors as the specification's appendix computes them."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    for per_track, heads in ((17, max(4, -(-(sectors // 17) // 1024))), (31, 16), (63, 16)):
        rows = sectors // per_track
        if heads <= 16 and rows < heads * 1024:
            break
    return rows // heads, heads, per_track
