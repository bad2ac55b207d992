"""A VMDK of a sparse disk (monolithicSparse): only grains that hold something, in one sequential write.

<https://www.vmware.com/app/vmdk/?src=vmdk>, "Virtual Disk Format 5.0". What VMware imports over the network is
streamOptimized, which deflates each grain; what is compressed already gains nothing from it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from kairosbuild.boot.sparse import Sparse

SECTOR = 512
GRAIN = 65536
_ENTRIES = 512  # grains of one table
_TABLE = _ENTRIES * 4 // SECTOR  # sectors
_DESCRIPTOR = 20  # sectors

Write = Callable[[bytes | memoryview], object]


def write(disk: Sparse, write: Write, identity: int) -> None:
    """Write the image through `write`, front to back. `identity` is the 32-bit number that names its content."""
    used = disk.used(GRAIN)
    tables = -(-disk.size // (GRAIN * _ENTRIES))
    directory = -(-tables * 4 // SECTOR)
    first = 1 + _DESCRIPTOR
    second = first + directory + tables * _TABLE
    data = _up(second + directory + tables * _TABLE, GRAIN // SECTOR)
    write(_header(disk.size, first, second, data))
    write(_descriptor(disk.size, identity).ljust(_DESCRIPTOR * SECTOR, b"\0"))
    for at in (first, second):
        places = range(at + directory, at + directory + tables * _TABLE, _TABLE)
        write(struct.pack(f"<{tables}I", *places).ljust(directory * SECTOR, b"\0"))
        for table in _tables(used, tables, data):
            write(table)
    write(bytes((data - second - directory - tables * _TABLE) * SECTOR))
    for number in used:
        end = min((number + 1) * GRAIN, disk.size)
        for chunk in disk.read(number * GRAIN, end):
            write(chunk)
        write(bytes((number + 1) * GRAIN - end))


def _tables(used: list[int], tables: int, data: int) -> Iterator[bytes]:
    place = {number: data + order * (GRAIN // SECTOR) for order, number in enumerate(used)}
    for table in range(tables):
        yield struct.pack(f"<{_ENTRIES}I", *(place.get(table * _ENTRIES + n, 0) for n in range(_ENTRIES)))


def _header(size: int, first: int, second: int, data: int) -> bytes:
    """A header that names a redundant grain directory and the one in use."""
    return struct.pack(
        "<4sIIQQQQIQQQB4sH433x",
        b"KDMV",
        1,
        3,
        size // SECTOR,
        GRAIN // SECTOR,
        1,
        _DESCRIPTOR,
        _ENTRIES,
        first,
        second,
        data,
        0,
        b"\n \r\n",
        0,
    )


def _descriptor(size: int, identity: int) -> bytes:
    cylinders = min(16383, size // (SECTOR * 16 * 63))
    return f"""# Disk DescriptorFile
version=1
CID={identity & 0xFFFFFFFE:08x}
parentCID=ffffffff
createType="monolithicSparse"

RW {size // SECTOR} SPARSE "disk.vmdk"

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
""".encode()


def _up(number: int, to: int) -> int:
    return number + -number % to
