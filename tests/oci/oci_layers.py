"""Small layers, for hypothesis and by hand."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, write_layer

ME = {"uid": os.getuid(), "gid": os.getgid()}
NAMES = st.sampled_from(["a", "b", "c", "b-b", "ä"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@st.composite
def layer_items(draw: st.DrawFn, *, whiteouts: bool = True) -> list[Item]:
    """A consistent small layer with every folder explicit, in any order, owned by whoever runs the tests."""
    kinds = ["file", "dir", "symlink", "hardlink", *(["whiteout", "opaque"] if whiteouts else [])]
    wanted = draw(st.lists(st.tuples(PATHS, st.sampled_from(kinds)), max_size=9))
    items: dict[str, Item] = {}
    files: list[str] = []
    for path, kind in wanted:
        folders = [path.rsplit("/", n)[0] for n in range(path.count("/"), 0, -1)]
        if path in items or any(items.get(folder, (Entry("x", "dir"),))[0].type != "dir" for folder in folders):
            continue
        if kind == "hardlink" and not files:
            continue
        for folder in folders:
            items.setdefault(folder, (Entry(folder, "dir", draw(st.sampled_from([0o755, 0o700])), **ME), None))
        if kind == "file":
            items[path] = (Entry(path, "file", draw(st.sampled_from([0o644, 0o755])), **ME), draw(st.binary(max_size=600)))
            files.append(path)
        elif kind == "dir":
            items[path] = (Entry(path, "dir", draw(st.sampled_from([0o755, 0o1777])), **ME), None)
        elif kind == "symlink":
            items[path] = (Entry(path, "symlink", 0o777, target=draw(st.sampled_from(["a", "../b", "/c"])), **ME), None)
        elif kind == "hardlink":
            items[path] = (Entry(path, "hardlink", target=draw(st.sampled_from(files)), **ME), None)
        elif kind == "whiteout":
            folder, _, name = path.rpartition("/")
            hide = f"{folder}/.wh.{name}" if folder else f".wh.{name}"
            items[hide] = (Entry(hide, "file", 0, **ME), b"")
        else:
            items[path] = (Entry(path, "dir", 0o755, **ME), None)
            items[f"{path}/.wh..wh..opq"] = (Entry(f"{path}/.wh..wh..opq", "file", 0, **ME), b"")
    return draw(st.permutations(list(items.values())))


def written(items: Iterable[Item], epoch: int = 0) -> tuple[bytes, Index]:
    """The canonical layer of these items, and its index."""
    out = io.BytesIO()
    made = write_layer(items, out, epoch)
    return out.getvalue(), Index.loads(made)


def file(path: str, data: bytes = b"x", **fields: int) -> Item:
    return replace(Entry(path, "file", **ME), **fields), data  # type: ignore[arg-type]


def folder(path: str, mode: int = 0o755) -> Item:
    return Entry(path, "dir", mode, **ME), None


def link(path: str, target: str) -> Item:
    return Entry(path, "symlink", 0o777, target=target, **ME), None


def hard(path: str, target: str) -> Item:
    return Entry(path, "hardlink", target=target, **ME), None


def whiteout(path: str) -> Item:
    return Entry(path, "file", 0, **ME), b""
