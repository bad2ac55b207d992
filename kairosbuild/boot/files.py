"""Single files out of a stack of layers, read where they lie in the tars."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kairosbuild.oci.entry import OPAQUE, parent, whiteout_of
from kairosbuild.oci.index import Index, Place, row
from kairosbuild.oci.reader import read_tar

_LINKS = 40  # as many as Linux follows

Layer = tuple[Path, Index]


class Files:
    """What a stack (bottom to top) shows at a path; links are followed, whiteouts honoured."""

    def __init__(self, stack: Sequence[Layer]) -> None:
        self._stack = tuple(stack)

    def read(self, path: str) -> bytes | None:
        """The content of a file, None when there is none of that name."""
        found = self._find(self.resolve(path))
        if found is None:
            return None
        tar, place = found
        if place.entry.type == "hardlink":
            return self.read(place.entry.target)
        if place.entry.type != "file":
            return None
        with tar.open("rb") as stream:
            stream.seek(place.data)
            return stream.read(place.entry.size)

    def resolve(self, path: str) -> str:
        """The path with every link on it followed; itself where that goes in circles."""
        todo, done, links = path.split("/"), "", 0
        while todo and links < _LINKS:
            name = todo.pop(0)
            done = parent(done) if name == ".." else posixpath.normpath(posixpath.join(done, name))
            found = self._find(done)
            if found and found[1].entry.type == "symlink":
                links += 1
                target = found[1].entry.target
                todo[:0] = target.lstrip("/").split("/")
                done = "" if target.startswith("/") else parent(done)
        return path if todo else done

    def paths(self, under: str) -> Iterator[str]:
        """Every path below a folder in any of the layers, hidden ones included."""
        for _, index in self._stack:
            yield from (path for path in index.paths() if path.startswith(f"{under}/"))

    def _find(self, path: str) -> tuple[Path, Place] | None:
        for tar, index in reversed(self._stack):
            if place := index.get(path):
                return tar, place
            if _hides(index, path):
                return None
        return None


def index_of(tar: Path) -> Index:
    """The index of a canonical layer that comes without one, by reading its headers."""
    with tar.open("rb") as stream:
        return Index([row(entry, 0, stream.tell()) for entry, _ in read_tar(stream)])


def _hides(index: Index, path: str) -> bool:
    return any(
        whiteout_of(above) in index or posixpath.join(parent(above), OPAQUE) in index
        for above in _upwards(path)
    )


def _upwards(path: str) -> Iterable[str]:
    while path:
        yield path
        path = parent(path)
