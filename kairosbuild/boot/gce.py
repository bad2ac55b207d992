"""What Google's cloud imports: a gzipped tar with a sparse `disk.raw` in it, in GNU's old format.

The gzip stream is of stored blocks: what the disk holds is compressed already, and its holes are not in the
tar. No compressor, no version of one, has a say in the bytes.
<https://cloud.google.com/compute/docs/import/import-existing-image#create_image_file>
"""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kairosbuild.boot.sparse import Sparse

GIB = 1 << 30
_CLUSTER = 65536
_BLOCK = 512
_STORED = 65535  # bytes of one stored deflate block

Write = Callable[[bytes | memoryview], object]


def write(disk: Sparse, write: Write, epoch: int) -> None:
    """Write the archive through `write`, front to back."""
    gzip = _Gzip(write)
    runs = list(_runs(disk))
    stored = sum(length for _, length in runs)
    for block in _headers(disk.size, stored, [*runs, (disk.size, 0)], epoch):
        gzip.write(block)
    for start, length in runs:
        for chunk in disk.read(start, start + length):
            gzip.write(chunk)
    gzip.write(bytes(-stored % _BLOCK + 2 * _BLOCK))
    gzip.close()


def unpacked(archive: Path, into: Path) -> Path:
    """The disk that lies in an archive, as a file with holes at `into`, which it returns."""
    with tarfile.open(archive, "r:gz") as tar, into.open("xb") as out:
        disk = tar.extractfile("disk.raw")
        assert disk is not None, "we made it a file"
        while chunk := disk.read(_CLUSTER):
            if chunk.count(0) == len(chunk):
                out.seek(len(chunk), os.SEEK_CUR)
            else:
                out.write(chunk)
        out.truncate()
    return into


def _runs(disk: Sparse) -> Iterator[tuple[int, int]]:
    """Start and length of what is not a hole."""
    start = end = 0
    for number in disk.used(_CLUSTER):
        at = number * _CLUSTER
        if at != end:
            if end > start:
                yield start, end - start
            start = at
        end = min(at + _CLUSTER, disk.size)
    if end > start:
        yield start, end - start


def _headers(size: int, stored: int, runs: Sequence[tuple[int, int]], epoch: int) -> Iterator[bytes]:
    """The member's header, and as many extensions of it as its list of runs needs."""
    head = bytearray(_BLOCK)
    fields = (
        (0, b"disk.raw"),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, _number(stored)),
        (136, _number(epoch)),
        (156, b"S"),
        (257, b"ustar  \0"),
        (265, b"root"),
        (297, b"root"),
        (386, _entries(runs[:4])),
        (482, bytes([len(runs) > 4])),
        (483, _number(size)),
        (148, b" " * 8),
    )
    for offset, value in fields:
        head[offset : offset + len(value)] = value
    head[148:156] = b"%06o\0 " % sum(head)
    yield bytes(head)
    for at in range(4, len(runs), 21):
        yield (_entries(runs[at : at + 21]).ljust(504, b"\0") + bytes([at + 21 < len(runs)])).ljust(
            _BLOCK, b"\0"
        )


def _entries(runs: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(_number(start) + _number(length) for start, length in runs)


def _number(value: int) -> bytes:
    """Octal, or GNU's base 256 for what has more than eleven digits."""
    return b"%011o\0" % value if value < 1 << 33 else b"\x80" + value.to_bytes(11, "big")


class _Gzip:
    """A gzip stream of stored blocks, without a name and without a time."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting = bytearray()
        self._checksum = self._length = 0
        write(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")

    def write(self, data: bytes | memoryview) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._length += len(data)
        self._waiting += data
        whole = len(self._waiting) // _STORED * _STORED
        view = memoryview(self._waiting)
        for at in range(0, whole, _STORED):
            self._block(view[at : at + _STORED], last=False)
        view.release()
        del self._waiting[:whole]

    def close(self) -> None:
        self._block(memoryview(bytes(self._waiting)), last=True)
        self._write(struct.pack("<II", self._checksum, self._length & 0xFFFFFFFF))

    def _block(self, data: memoryview, *, last: bool) -> None:
        self._write(struct.pack("<BHH", last, len(data), len(data) ^ 0xFFFF))
        self._write(bytes(data))
