"""A disk before it is written: pieces at their places, out of memory or files, and zeros between them."""

from __future__ import annotations

import fcntl
import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kairosbuild.core.digest import CHUNK

_FICLONERANGE = 0x4020940D  # linux/fs.h
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes of a file, from `offset`."""

    path: Path
    offset: int
    size: int


class Sparse:
    """A disk of `size` bytes. Pieces may be added in any order; where two overlap, nothing is promised."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pieces: list[tuple[int, int, bytes | Part]] = []
        self._sorted = True

    def add(self, offset: int, content: bytes | Part) -> None:
        """Put content at this byte. Raises ValueError beyond the end."""
        length = content.size if isinstance(content, Part) else len(content)
        if offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} do not fit {self.size}")
        if length:
            self._pieces.append((offset, offset + length, content))
            self._sorted = False

    def add_all(self, base: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Put several pieces at places relative to `base`."""
        for offset, content in pieces:
            self.add(base + offset, content)

    def replace(self, offset: int, content: bytes) -> None:
        """Put other bytes at the beginning of the piece in memory that begins here."""
        for number, (start, end, piece) in enumerate(self._pieces):
            if start == offset and isinstance(piece, bytes):
                self._pieces[number] = (start, end, content + piece[len(content) :])
                return
        raise ValueError(f"no piece of bytes begins at {offset}")

    def used(self, cluster: int) -> list[int]:
        """The numbers of the clusters of that many bytes that hold something, rising."""
        found: list[int] = []
        for start, end, _ in self._all():
            first = max(start // cluster, found[-1] + 1 if found else 0)
            found.extend(range(first, -(-end // cluster)))
        return found

    def read(self, start: int, end: int) -> Iterator[bytes | memoryview]:
        """The bytes between two places, zeros included, in pieces that are valid until the next."""
        pieces = self._all()
        at = start
        number = max(0, bisect_left(pieces, start, key=lambda piece: piece[0]) - 1)
        while at < end:
            while number < len(pieces) and pieces[number][1] <= at:
                number += 1
            following = pieces[number][0] if number < len(pieces) else end
            if following > at:
                gap = min(following, end)
                yield bytes(gap - at)
                at = gap
            else:
                stop = min(pieces[number][1], end)
                yield from _content(pieces[number][2], at - following, stop - at)
                at = stop

    def write_raw(self, path: Path) -> None:
        """Write the disk as a file with holes. Parts of files are shared with it where the file system can."""
        with path.open("xb") as out:
            out.truncate(self.size)
            for start, end, content in self._all():
                if isinstance(content, Part) and _shared(content, out.fileno(), start):
                    continue
                out.seek(start)
                for chunk in _content(content, 0, end - start):
                    out.write(chunk)

    def _all(self) -> list[tuple[int, int, bytes | Part]]:
        if not self._sorted:
            self._pieces.sort(key=lambda piece: piece[:2])
            self._sorted = True
        return self._pieces


def _shared(part: Part, out: int, at: int) -> bool:
    """Whether the extents of a part are now the open file's too, as btrfs and XFS have it; whole blocks only."""
    if at % _BLOCK or part.offset % _BLOCK:
        return False
    handle = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(out, _FICLONERANGE, struct.pack("<qQQQ", handle, part.offset, part.size, at))
    except OSError:
        return False  # another file system, or one that cannot; or a part that ends within a block
    finally:
        os.close(handle)
    return True


def _content(content: bytes | Part, start: int, length: int) -> Iterator[bytes | memoryview]:
    if isinstance(content, bytes):
        yield memoryview(content)[start : start + length]
        return
    buffer = memoryview(bytearray(min(CHUNK, length)))
    handle = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = content.offset + start, content.offset + start + length
        while at < end:
            got = os.preadv(handle, (buffer[: end - at],), at)
            if not got:
                raise ValueError(f"{content.path} ends before byte {end}")
            yield buffer[:got]
            at += got
    finally:
        os.close(handle)
