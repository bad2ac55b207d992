"""Small layers, for hypothesis and by hand; all owned by whoever runs the tests."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from kairosbuild.oci.entry import Entry, EntryType
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, write_layer

ME = {"uid": os.getuid(), "gid": os.getgid()}
NAMES = st.sampled_from(["a", "b", "c", "b-b", "ä"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(["a", "../b", "/c"])


def member(path: str, kind: EntryType, mode: int = 0o755, **fields: Any) -> Entry:
    return replace(Entry(path, kind, mode, **ME), **fields)


def file(path: str, data: bytes = b"x", mode: int = 0o644, **fields: Any) -> Item:
    return member(path, "file", mode, size=len(data), **fields), data


def folder(path: str, mode: int = 0o755, **fields: Any) -> Item:
    return member(path, "dir", mode, **fields), None


def link(path: str, target: str) -> Item:
    return member(path, "symlink", 0o777, target=target), None


def hard(path: str, target: str) -> Item:
    return member(path, "hardlink", 0o644, target=target), None


def whiteout(path: str) -> Item:
    return member(path, "file", 0), b""


@st.composite
def layer_items(draw: st.DrawFn, *, whiteouts: bool = True) -> list[Item]:
    """A consistent small layer with every folder explicit, in any order."""
    kinds = ["file", "dir", "symlink", "hardlink", *(["whiteout", "opaque"] if whiteouts else [])]
    items: dict[str, Item] = {}
    for path, kind in draw(st.lists(st.tuples(PATHS, st.sampled_from(kinds)), max_size=9)):
        folders = [path.rsplit("/", n)[0] for n in range(path.count("/"), 0, -1)]
        if path in items or any(items[above][0].type != "dir" for above in folders if above in items):
            continue
        files = [
            entry.path for entry, _ in items.values() if entry.type == "file" and ".wh." not in entry.path
        ]
        if kind == "hardlink" and not files:
            continue
        for above in folders:
            items.setdefault(above, folder(above, draw(st.sampled_from([0o755, 0o700]))))
        name = path.rpartition("/")[2]
        if kind == "file":
            items[path] = file(path, draw(st.binary(max_size=600)), draw(st.sampled_from([0o644, 0o755])))
        elif kind == "dir":
            items[path] = folder(path, draw(st.sampled_from([0o755, 0o1777])))
        elif kind == "symlink":
            items[path] = link(path, draw(TARGETS))
        elif kind == "hardlink":
            items[path] = hard(path, draw(st.sampled_from(files)))
        elif kind == "whiteout":
            hide = path.removesuffix(name) + ".wh." + name
            items[hide] = whiteout(hide)
        else:
            items[path] = folder(path)
            items[f"{path}/.wh..wh..opq"] = whiteout(f"{path}/.wh..wh..opq")
    return draw(st.permutations(list(items.values())))


def written(items: Iterable[Item], epoch: int = 0) -> tuple[bytes, Index]:
    """The canonical layer of these items, and its index."""
    out = io.BytesIO()
    made = write_layer(items, out, epoch)
    return out.getvalue(), Index.loads(made)


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
