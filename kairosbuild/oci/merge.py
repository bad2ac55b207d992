"""A stack of layers as one, by arithmetic over their indexes and one sequential copy.

The result is what an overlay mount of the stack shows. A folder's metadata is its topmost entry's; one that
a layer only implies takes it from below, or is 0755 and root's. A file that replaces a folder hides all that
was in it, a folder that replaces anything else starts empty. Hard links are to files, not to names: when
an upper layer replaces the name that carried the content, those that remain keep it.

A layer with `lib/x` above one where `lib` is a link to `usr/lib` hides the link, and all that was
reached through it; that is what overlayfs does, and what `through_links` is for.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.errors import InputError
from kairosbuild.oci import index
from kairosbuild.oci.behind import Behind
from kairosbuild.oci.entry import OPAQUE, Entry, hidden_by, is_opaque, order, parent, whiteout_of
from kairosbuild.oci.header import END, encode, padding
from kairosbuild.oci.index import Index, Place, Row, place
from kairosbuild.oci.layer import Slice

_MADE = -1  # the layer of what no layer holds: a folder only implied, an opaque mark that became needed
_MAX_LINKS = 40  # as Linux follows in one path
_PATH, _LETTER, _SIZE, _MTIME, _OFFSET, _DATA, _TARGET = 0, 1, 5, 6, 7, 8, 9

Inode = tuple[int, Row]
"""The layer that holds it and its row there; two paths with the same row are hard links."""


def merge(
    stack: Sequence[tuple[Path, Index]],
    out: BinaryIO,
    epoch: int,
    *,
    keep_whiteouts: bool = False,
    through_links: bool = False,
) -> bytes:
    """Write these canonical layers, bottom to top, as one canonical layer; return its index.

    With `keep_whiteouts` the result can stand for the stack above any other layers: what it hides there
    stays hidden. With `through_links`, what a layer has beneath a path that is a link to a folder goes to
    where the link leads, as dpkg would have it. Raises InputError: `merge-link` (a hard link to
    nothing), `merge-conflict` (two files of one layer end up in one place), `layer-truncated`.
    """
    union = Union(keep_whiteouts=keep_whiteouts, through_links=through_links)
    for _, layer in stack:
        union.add(layer)
    opened: list[int] = []
    try:
        opened += (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _ in stack)
        with Behind(out) as sink:
            rows = _write(union, opened, sink, epoch)
            sink.write(END)
    finally:
        for fd in opened:
            os.close(fd)
    return index.dumps(rows)


class Union:
    """What a stack of layers shows. Add layers bottom to top, then iterate: every path, in order."""

    def __init__(self, *, keep_whiteouts: bool = False, through_links: bool = False) -> None:
        self._keep = keep_whiteouts
        self._through = through_links
        self._seen: dict[str, Inode] = {}  # by order(path)
        self._sorted: list[str] | None = []
        self._count = 0
        self.linked: set[int] = set()
        """The `id` of each row that was hard-linked to at some time."""

    def __iter__(self) -> Iterator[tuple[str, Inode]]:
        """Each path and what stands there, in the order of a layer."""
        for key in self._keys():
            yield key.replace("\0", "/"), self._seen[key]

    def __contains__(self, path: str) -> bool:
        return order(path) in self._seen

    def get(self, path: str) -> tuple[int, Place] | None:
        """The number of the layer (-1: none) and the place there of what a path shows, links not followed."""
        inode = self._seen.get(order(path))
        return (inode[0], place(inode[1])) if inode else None

    def add(self, layer: Index) -> None:
        """Put this layer on top."""
        number, self._count = self._count, self._count + 1
        links = self._links(layer, number)
        rows = self._through_links(layer) if self._through else [(row[_PATH], row) for row in layer.rows]
        for path, row in rows:
            self._hide(path, row)
        folder = ""
        mine: set[str] = set()
        for path, row in rows:
            above = parent(path)
            if above != folder:
                self._imply(above)
                folder = above
            self._put(path, links.get(id(row), (number, row)), mine)
        self._sorted = None

    def _links(self, layer: Index, number: int) -> dict[int, Inode]:
        """What each hard link of the layer is a link to, found before the layer changes anything."""
        found: dict[int, Inode] = {}
        links = [row for row in layer.rows if row[_LETTER] == "h"]
        rows = {row[_PATH]: row for row in layer.rows} if links else {}
        for row in links:
            target = row[_TARGET]
            inode: Inode | None = (number, rows[target]) if target in rows else self._seen.get(order(target))
            if inode is None and self._keep:
                continue
            if inode is None or inode[1][_LETTER] in "dh":
                raise InputError(
                    f"the hard link {row[_PATH]!r} names {target!r}, which no layer below has as a file",
                    reason="merge-link",
                )
            found[id(row)] = inode
            self.linked.add(id(inode[1]))
        return found

    # What a layer hides.

    def _hide(self, path: str, row: Row) -> None:
        """Take away what this row hides of the layers below."""
        if ".wh." in path and path.rpartition("/")[2].startswith(".wh."):
            if is_opaque(path):
                self._drop_inside(parent(path))
            else:
                self._drop_inside(hidden_by(path))
                self._seen.pop(order(hidden_by(path)), None)
        elif row[_LETTER] != "d":
            old = self._seen.get(order(path))
            if old and old[1][_LETTER] == "d":
                self._drop_inside(path)

    def _drop_inside(self, path: str) -> None:
        keys = self._keys()
        prefix = order(path) + "\0" if path else ""
        first = bisect_left(keys, prefix)
        last = bisect_left(keys, order(path) + "\1") if path else len(keys)
        for key in keys[first:last]:
            self._seen.pop(key, None)

    # What a layer adds.

    def _imply(self, folder: str) -> None:
        """Make sure that there is a folder with this path."""
        names = folder.split("/")
        for depth in range(1, len(names) + 1):
            path = "/".join(names[:depth])
            old = self._seen.get(order(path))
            if path and (old is None or old[1][_LETTER] != "d"):
                made = index.row(Entry(path, "dir", 0o755), 0, 0)
                self._seen[order(path)] = (_MADE, made)
                self._replaced(path, old, "d")

    def _put(self, path: str, inode: Inode, mine: set[str]) -> None:
        if ".wh." in path and path.rpartition("/")[2].startswith(".wh."):
            if self._keep:
                self._seen[order(path)] = inode
            return
        key = order(path)
        letter = inode[1][_LETTER]
        if self._through:
            if key in mine and (letter != "d" or self._seen[key][1][_LETTER] != "d"):
                raise InputError(
                    f"a layer has two files that end up as {path!r}",
                    reason="merge-conflict",
                    hint="it ships one path both beneath a link and where the link leads",
                )
            mine.add(key)
        old = self._seen.get(key)
        self._seen[key] = inode
        self._replaced(path, old, letter)

    def _replaced(self, path: str, old: Inode | None, letter: str) -> None:
        """Keep hidden what the lower layers of others may have where this now stands."""
        if not self._keep:
            return
        below = self._seen.pop(order(whiteout_of(path)), None)
        if letter == "d" and (below or (old and old[1][_LETTER] != "d")):
            mark = f"{path}/{OPAQUE}"
            self._seen.setdefault(order(mark), (_MADE, index.row(Entry(mark, "file", 0), 0, 0)))

    # Through links.

    def _through_links(self, layer: Index) -> list[tuple[str, Row]]:
        """The rows with the paths they have once links to folders below are followed."""
        opaque = {parent(row[_PATH]) for row in layer.rows if is_opaque(row[_PATH])}
        known = {"": ""}
        moved = []
        for row in layer.rows:
            path = row[_PATH]
            above, _, name = path.rpartition("/")
            folder = self._lead(above, opaque, known)
            here = f"{folder}/{name}" if folder else name
            if row[_LETTER] == "d" and self._lead(path, opaque, known) != here:
                continue  # the link stays, and the folder it leads to keeps its metadata
            moved.append((here, row))
        moved.sort(key=lambda item: order(item[0]))
        return moved

    def _lead(self, folder: str, opaque: set[str], known: dict[str, str]) -> str:
        """Where a folder of a layer is, when links of the layers below are followed."""
        if folder not in known:
            above, _, name = folder.rpartition("/")
            base = self._lead(above, opaque, known)
            here = f"{base}/{name}" if base else name
            known[folder] = here if folder in opaque else self._followed(here) or here
        return known[folder]

    def _followed(self, path: str) -> str | None:
        """The folder that a path leads to, inside the root; None when it is none."""
        todo = path.split("/")[::-1]
        at: list[str] = []
        hops = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                at = at[:-1]
                continue
            inode = self._seen.get("\0".join((*at, name)))
            letter = inode[1][_LETTER] if inode else ""
            if inode and letter == "l" and hops < _MAX_LINKS:
                hops += 1
                target = inode[1][_TARGET]
                at = [] if target.startswith("/") else at
                todo += target.split("/")[::-1]
            elif letter == "d":
                at.append(name)
            else:
                return None
        return "/".join(at)

    def _keys(self) -> list[str]:
        """All keys in order; sorting joins runs that are sorted already, which is quick."""
        if self._sorted is None:
            self._sorted = sorted(self._seen)
        return self._sorted


def _write(union: Union, layers: Sequence[int], sink: Behind, epoch: int) -> list[Row]:
    rows: list[Row] = []
    heads: dict[int, str] = {}
    copy = _Copy(layers, sink)
    for path, (number, row) in union:
        head = heads.setdefault(id(row), path) if id(row) in union.linked else path
        if number >= 0 and head == path == row[_PATH] and row[_MTIME] <= epoch:
            rows.append(copy.member(number, row))
        else:
            rows.append(copy.anew(number, row, _entry(row, path, head, epoch)))
    copy.flush()
    return rows


def _entry(row: Row, path: str, head: str, epoch: int) -> Entry:
    entry = replace(place(row).entry, path=path, mtime=min(row[_MTIME], epoch))
    if head == path:
        return entry
    return replace(entry, type="hardlink", size=0, target=head, xattrs=(), major=0, minor=0)


class _Copy:
    """Members copied out of layers; what lies together there is copied at once."""

    def __init__(self, layers: Sequence[int], sink: Behind) -> None:
        self._layers = layers
        self._sink = sink
        self._run = (_MADE, 0, 0)  # layer, from, to
        self._position = 0

    def member(self, number: int, row: Row) -> Row:
        """Copy a member as it is; return its row in the result."""
        copied = row.copy()
        copied[_OFFSET] = self._position
        copied[_DATA] = self._position + row[_DATA] - row[_OFFSET]
        self._extend(number, row[_OFFSET], row[_DATA] + row[_SIZE] + padding(row[_SIZE]))
        return copied

    def anew(self, number: int, row: Row, entry: Entry) -> Row:
        """Write a new header for what a row has as content; return the row in the result."""
        self.flush()
        header = encode(entry)
        self._sink.write(header)
        made = index.row(entry, self._position, self._position + len(header))
        self._position += len(header)
        if entry.size:
            self._extend(number, row[_DATA], row[_DATA] + row[_SIZE] + padding(row[_SIZE]))
        return made

    def flush(self) -> None:
        """Do the copying that was put off."""
        number, start, end = self._run
        self._run = (_MADE, 0, 0)
        if end == start:
            return
        if self._sink.fill(Slice(self._layers[number], start).reader(), end - start) < end - start:
            raise InputError("a layer is shorter than its index says", reason="layer-truncated")

    def _extend(self, number: int, start: int, end: int) -> None:
        if self._run[0] != number or self._run[2] != start:
            self.flush()
            self._run = (number, start, start)
        self._run = (number, self._run[1], end)
        self._position += end - start
