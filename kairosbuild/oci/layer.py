"""The canonical layer: a sorted tar whose bytes depend on nothing but its entries and the epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.errors import InputError
from kairosbuild.oci import index
from kairosbuild.oci.behind import Behind
from kairosbuild.oci.entry import OPAQUE, Entry, check_path, hidden_by, is_opaque, is_whiteout, order
from kairosbuild.oci.header import BLOCK, END, encode, encode_file, padding


@dataclass(frozen=True, slots=True)
class Slice:
    """Content that lies in an open file, from `offset`; how much of it is the entry's size."""

    fd: int
    offset: int

    def reader(self) -> Callable[[memoryview], int]:
        """A function that reads on into the view it is given."""
        at = self.offset

        def read(view: memoryview) -> int:
            nonlocal at
            got = os.preadv(self.fd, (view,), at)
            at += got
            return got

        return read


Content = Path | str | bytes | BinaryIO | Slice | int | None
"""A file's bytes, or where to read them: a path, a stream, a slice, the descriptor of an open file that holds
nothing else. None for all that has none."""

_ZEROS = bytes(BLOCK)

Item = tuple[Entry, Content]


def write_layer(entries: Iterable[Item], out: BinaryIO, epoch: int, *, flat_time: bool = False) -> bytes:
    """Write the canonical tar of these entries, in whatever order they come; return its index.

    `mtime` is clamped to between 0 and `epoch` (seconds), or is the epoch everywhere with `flat_time`.
    The size of content given as bytes is its length. `out` needs a `write` only, which may be called
    from another thread until this returns. Raises InputError: `layer-path`, `layer-duplicate`,
    `layer-link`, `file-changed` (content shorter or longer than the entry says).
    """
    return write_settled(settle(entries), out, epoch, flat_time=flat_time)


def write_settled(items: Iterable[Item], out: BinaryIO, epoch: int, *, flat_time: bool = False) -> bytes:
    """`write_layer` for what comes as `settle` would leave it; nothing is held but the index."""
    with Behind(out) as sink:
        writer = Writer(sink, epoch, flat_time=flat_time)
        for entry, content in items:
            writer.add(entry, content)
        return writer.end()


class Writer:
    """Writes members one by one, in the order and the form of a settled layer, and keeps their index."""

    def __init__(self, sink: Behind, epoch: int, *, flat_time: bool) -> None:
        self._sink = sink
        self._epoch = epoch
        self._latest = -(1 << 62) if flat_time else epoch  # whatever is later gets the epoch
        self._lines: list[str] = []

    def add(self, entry: Entry, content: Content) -> None:
        """Add any member."""
        mtime = self._epoch if entry.mtime > self._latest else max(0, entry.mtime)
        header = encode(entry, mtime)
        offset = self._sink.position
        self._lines.append(index.line(entry, offset, offset + len(header), mtime))
        if isinstance(content, str | Path):
            _named_file(header, entry.path, entry.size, content, self._sink)
        elif isinstance(content, int):
            _file(header, entry.path, entry.size, content, self._sink)
        else:
            self._sink.write(header)
            _content(entry.path, entry.size, content, self._sink)

    def add_file(self, path: str, info: os.stat_result, fd: int) -> None:
        """Add an open file that has neither attributes nor other names: most members, so without a detour."""
        mtime = self._epoch if info.st_mtime > self._latest else max(0, int(info.st_mtime))
        mode, uid, gid, size = info.st_mode & 0o7777, info.st_uid, info.st_gid, info.st_size
        header = encode_file(path, mode, uid, gid, size, mtime)
        offset = self._sink.position
        self._lines.append(
            index.plain_line(path, "f", mode, uid, gid, size, mtime, offset, offset + len(header))
        )
        _file(header, path, size, fd, self._sink)

    def end(self) -> bytes:
        """Write the end mark; return the index."""
        self._sink.write(END)
        return index.joined(self._lines)


def settle(entries: Iterable[Item]) -> list[Item]:
    """The one form of these entries: sorted, sizes right, each hard link after the file it names."""
    items = [_sized(entry, content) for entry, content in entries]
    keys = [order(entry.path) for entry, _ in items]
    if any(a >= b for a, b in pairwise(keys)):
        items.sort(key=lambda item: order(item[0].path))
        _refuse_duplicates(items)
    _refuse_odd_paths(items)
    if any(entry.type == "hardlink" for entry, _ in items):
        items = _relinked(items)
    if any(is_whiteout(entry.path) for entry, _ in items):
        items = _without_needless_whiteouts(items)
    return items


def _sized(entry: Entry, content: Content) -> Item:
    if entry.type != "file":
        return (replace(entry, size=0) if entry.size else entry), None
    if isinstance(content, bytes) and entry.size != len(content):
        entry = replace(entry, size=len(content))
    return entry, content


def _refuse_duplicates(items: list[Item]) -> None:
    for (before, _), (entry, _) in pairwise(items):
        if before.path == entry.path:
            raise InputError(f"a layer would hold {entry.path!r} twice", reason="layer-duplicate")


def _refuse_odd_paths(items: list[Item]) -> None:
    """Entries come in the order of the tree, so what is above an entry is the last seen at each depth."""
    leaf = ""
    for entry, _ in items:
        check_path(entry.path, reason="layer-path")
        if leaf and entry.path.startswith(leaf):
            raise InputError(f"{entry.path!r} is inside {leaf[:-1]!r}, no folder", reason="layer-path")
        if entry.type != "dir":
            leaf = entry.path + "/"
        if entry.type != "file" and is_whiteout(entry.path):
            raise InputError(f"the whiteout {entry.path!r} is no file", reason="layer-path")


def _relinked(items: list[Item]) -> list[Item]:
    """Let the first name of each hard-linked file carry it, and the others name that one."""
    by_path = {entry.path: (entry, content) for entry, content in items}
    heads: dict[str, str] = {}
    settled: list[Item] = []
    for entry, content in items:
        real = _real(entry, by_path)
        if real not in by_path:
            settled.append((replace(entry, target=real, xattrs=()), None))  # its file is in a layer below
            continue
        holder, held = by_path[real]
        head = heads.setdefault(real, entry.path)
        if head == entry.path:
            settled.append((replace(holder, path=head), held) if real != head else (entry, content))
        else:
            settled.append(
                (
                    replace(
                        holder,
                        path=entry.path,
                        type="hardlink",
                        size=0,
                        target=head,
                        xattrs=(),
                        major=0,
                        minor=0,
                    ),
                    None,
                )
            )
    return settled


def _real(entry: Entry, by_path: dict[str, Item]) -> str:
    """The path of the entry that holds the content of this one."""
    if entry.type != "hardlink":
        return entry.path
    seen = {entry.path}
    while True:
        target = entry.target
        if target in seen:
            raise InputError(f"the hard link {entry.path!r} leads to itself", reason="layer-link")
        if target not in by_path:
            return target
        seen.add(target)
        entry = by_path[target][0]
        if entry.type == "dir":
            raise InputError(f"a hard link names the folder {entry.path!r}", reason="layer-link")
        if entry.type != "hardlink":
            return entry.path


def _without_needless_whiteouts(items: list[Item]) -> list[Item]:
    """A whiteout beside what replaces it says nothing of a file, and makes a folder opaque."""
    types = {entry.path: entry.type for entry, _ in items}
    kept: list[Item] = []
    opaque: list[Item] = []
    for entry, content in items:
        if not is_whiteout(entry.path):
            kept.append((entry, content))
            continue
        plain = Entry(entry.path, "file", mode=0, mtime=entry.mtime)
        replaced = "" if is_opaque(entry.path) else types.get(hidden_by(entry.path), "")
        if not replaced:
            kept.append((plain, b""))
        elif replaced == "dir" and f"{hidden_by(entry.path)}/{OPAQUE}" not in types:
            opaque.append((replace(plain, path=f"{hidden_by(entry.path)}/{OPAQUE}"), b""))
    return sorted(kept + opaque, key=lambda item: order(item[0].path)) if opaque else kept


def _named_file(header: bytes, path: str, size: int, where: str | Path, sink: Behind) -> None:
    fd = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _file(header, path, size, fd, sink)
    finally:
        os.close(fd)


def _file(header: bytes, path: str, size: int, fd: int, sink: Behind) -> None:
    if not sink.member(header, fd, size):
        sink.write(header)
        _content(path, size, fd, sink)


def _content(path: str, size: int, content: Content, sink: Behind) -> None:
    got = 0
    if isinstance(content, bytes):
        got = len(content)
        sink.write(content)
    elif isinstance(content, Slice):
        got = sink.fill(content.reader(), size)
    elif isinstance(content, int):
        got = sink.fill(Slice(content, 0).reader(), size, ends=True)
    elif content is not None:
        assert not isinstance(content, str | Path)
        got = sink.fill(_stream_reader(content), size, ends=True)
    sink.write(_ZEROS[: padding(got)])
    if got != size:
        raise InputError(
            f"{path!r} was to have {size} bytes and has {'more' if got > size else got}",
            reason="file-changed",
            hint="it changed while it was read",
        )


def _stream_reader(stream: BinaryIO) -> Callable[[memoryview], int]:
    def read(view: memoryview) -> int:
        chunk = stream.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    return read
