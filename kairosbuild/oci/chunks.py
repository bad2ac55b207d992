"""Content-defined chunks: where a file is cut depends on what stands there, so that what did not change is found again.

A chunk ends behind the first marker (the bytes A5 5A, or an empty line) that comes at least 16 KiB after its
start, and after 512 KiB at the latest. Compressed data meet a marker every 32 KiB, text meets empty lines, and
a run of zeros makes equal chunks. Bytes put in or taken out move later cuts along with them. Looking for two
bytes is what C libraries do fastest: a rolling hash would cost thirty times as much in Python.

The list of a file's chunks is `KBCHUNK1`, then for each chunk its length (4 bytes, big-endian) and its sha256
(32 bytes). Lengths add up to the file's size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

LEAST, MOST = 16 << 10, 512 << 10
MAGIC = b"KBCHUNK1"
_MARKERS = (b"\xa5\x5a", b"\n\n")
_WINDOW = 4 << 20  # bytes searched at once
_ROW = struct.Struct(">I32s")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of a file: where they begin, how many, and their sha256."""

    offset: int
    size: int
    sha256: bytes


def chunks_of(file: Path) -> Iterator[Chunk]:
    """The chunks of a file, in order."""
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        marks = [_Marks(stream.fileno(), size, marker) for marker in _MARKERS]
        at = 0
        while at < size:
            end = min([at + MOST, size, *(mark.behind(at + LEAST) for mark in marks)])
            yield Chunk(at, end - at, sha256(os.pread(stream.fileno(), end - at, at)).digest())
            at = end


def dumps(file: Path) -> bytes:
    """The list of a file's chunks."""
    return MAGIC + b"".join(_ROW.pack(chunk.size, chunk.sha256) for chunk in chunks_of(file))


def loads(data: bytes, size: int) -> list[Chunk]:
    """The chunks in a list for a file of so many bytes. ValueError when it cannot be one."""
    body = data[len(MAGIC) :]
    if not data.startswith(MAGIC) or len(body) % _ROW.size:
        raise ValueError("no list of chunks")
    found, at = [], 0
    for length, digest in _ROW.iter_unpack(body):
        if not 0 < length <= MOST:
            raise ValueError(f"a chunk of {length} bytes")
        found.append(Chunk(at, length, digest))
        at += length
    if at != size:
        raise ValueError(f"chunks of {at} bytes for a file of {size}")
    return found


class _Marks:
    """Where a marker stands in an open file. What was found stays known until it is passed: no byte is searched twice."""

    def __init__(self, handle: int, size: int, marker: bytes) -> None:
        self._handle, self._size, self._marker = handle, size, marker
        self._next = -1
        self._start, self._window = 0, b""

    def behind(self, at: int) -> int:
        """The byte behind the first marker that begins at `at` or later; beyond the file when there is none."""
        if self._next < at:
            self._next = self._find(at)
        return self._next + len(self._marker)

    def _find(self, at: int) -> int:
        while at < self._size:
            if not self._start <= at < self._start + len(self._window) - len(self._marker) + 1:
                self._start, self._window = at, os.pread(self._handle, _WINDOW, at)
            found = self._window.find(self._marker, at - self._start)
            if found >= 0:
                return self._start + found
            at = max(at + 1, self._start + len(self._window) - len(self._marker) + 1)
        return self._size
