"""A stack of layers as one tree to read in: what a machine that mounts it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index, Row, place
from kairosbuild.oci.merge import Union

_MOST_LINKS = 40
_LARGEST = 512 << 20  # bytes of a file that is read: a database of packages at most


@dataclass(frozen=True)
class Layer:
    """A layer and whose it is. `tar` is read when a file's content is asked for."""

    node: str
    digest: str
    size: int
    tar: Path
    index: Index


class View:
    """The tree of these layers, bottom to top."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)

    @cached_property
    def _rows(self) -> Mapping[str, tuple[int, Row]]:
        union = Union()
        for layer in self.layers:
            union.add(layer.index)
        return dict(iter(union))

    def __contains__(self, path: str) -> bool:
        return self._found(path) is not None

    def entries(self) -> Iterator[tuple[Entry, int]]:
        """Every path with its entry and the number of the layer that shows it there."""
        for path, (layer, row) in self._rows.items():
            entry = place(row).entry
            yield (entry if entry.path == path else _renamed(entry, path)), layer

    def names(self, folder: str) -> tuple[str, ...]:
        """The names in a folder, links on the way followed."""
        real = self._real(folder)
        if real is None:
            return ()
        return tuple(sorted(self._folders.get(real, ())))

    def read(self, path: str) -> bytes | None:
        """The content of a file, links followed; None where there is none."""
        found = self._found(path)
        if found is None:
            return None
        number, row = found
        at = place(row)
        if at.entry.type != "file" or at.entry.size > _LARGEST or number < 0:
            return None
        with self.layers[number].tar.open("rb") as stream:
            stream.seek(at.data)
            return stream.read(at.entry.size)

    def chunks(self, path: str, size: int) -> Iterator[bytes]:
        """The content of a file in pieces, however large it is."""
        found = self._found(path)
        if found is None or found[0] < 0:
            return
        at = place(found[1])
        left = at.entry.size
        with self.layers[found[0]].tar.open("rb") as stream:
            stream.seek(at.data)
            while left and (chunk := stream.read(min(size, left))):
                left -= len(chunk)
                yield chunk

    @cached_property
    def _folders(self) -> Mapping[str, set[str]]:
        found: dict[str, set[str]] = {}
        for path in self._rows:
            folder, _, name = path.rpartition("/")
            found.setdefault(folder, set()).add(name)
        return found

    def _found(self, path: str) -> tuple[int, Row] | None:
        real = self._real(path)
        return None if real is None else self._rows.get(real)

    def _real(self, path: str) -> str | None:
        """The path without links, None when one leads nowhere or in a circle."""
        done: list[str] = []
        todo = path.strip("/").split("/")[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            entry = self._entry("/".join([*done, part]))
            if entry is None or entry.type != "symlink":
                done.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if entry.target.startswith("/"):
                done = []
            todo += entry.target.split("/")[::-1]
        return "/".join(done)

    def _entry(self, path: str) -> Entry | None:
        found = self._rows.get(path)
        return place(found[1]).entry if found else None


def _renamed(entry: Entry, path: str) -> Entry:
    from dataclasses import replace

    return replace(entry, path=path)
