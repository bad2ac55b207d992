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
from kairosbuild.oci.header import BLOCK, END, encode, padding


@dataclass(frozen=True, slots=True)
class Slice:
    """Content that lies in an open file, from `offset`; how much of it is the entry's size.

    `whole` says that it ends where the file does.
    """

    fd: int
    offset: int
    whole: bool = False

    def reader(self) -> Callable[[memoryview], int]:
        """A function that reads on into the view it is given."""
        at = self.offset

        def read(view: memoryview) -> int:
            nonlocal at
            got = os.preadv(self.fd, (view,), at)
            at += got
            return got

        return read


Content = Path | str | bytes | BinaryIO | Slice | None
"""A file's bytes: where to read them (path, stream, slice), or themselves. None for all that has none."""

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
    lines: list[str] = []
    with Behind(out) as sink:
        for entry, content in items:
            mtime = epoch if flat_time else max(0, min(entry.mtime, epoch))
            header = encode(entry, mtime)
            offset = sink.position
            lines.append(index.line(entry, offset, offset + len(header), mtime))
            if isinstance(content, str | Path):
                _file(header, entry, content, sink)
            else:
                sink.write(header)
                _content(entry, content, sink)
        sink.write(END)
    return index.joined(lines)


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


def _file(header: bytes, entry: Entry, path: str | Path, sink: Behind) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not sink.member(header, fd, entry.size):
            sink.write(header)
            _content(entry, Slice(fd, 0, whole=True), sink)
    finally:
        os.close(fd)


def _content(entry: Entry, content: Content, sink: Behind) -> None:
    got = 0
    if isinstance(content, bytes):
        got = len(content)
        sink.write(content)
    elif isinstance(content, Slice):
        got = sink.fill(content.reader(), entry.size, ends=content.whole)
    elif content is not None:
        assert not isinstance(content, str | Path)
        got = sink.fill(_stream_reader(content), entry.size, ends=True)
    sink.write(_ZEROS[: padding(got)])
    if got != entry.size:
        raise InputError(
            f"{entry.path!r} was to have {entry.size} bytes and has {'more' if got > entry.size else got}",
            reason="file-changed",
            hint="it changed while it was read",
        )


def _stream_reader(stream: BinaryIO) -> Callable[[memoryview], int]:
    def read(view: memoryview) -> int:
        chunk = stream.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    return read
