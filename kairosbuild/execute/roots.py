"""Layers as folders: each is extracted once, and kept for all actions that have it in their root."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from kairosbuild.core.digest import Blob
from kairosbuild.store.store import Store


class Roots:
    """Gives the folders that a root is made of, out of the store's directory cache; owners are not kept."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def stack(self, root: Sequence[Blob]) -> tuple[Path, ...]:
        """One folder a layer, bottom to top, with whiteouts as overlayfs has them (userxattr)."""
        return tuple(self._layer(blob) for blob in root)

    def merged(self, root: Sequence[Blob]) -> Path:
        """One folder that holds what the whole stack shows."""
        if len(root) == 1:
            return self._layer(root[0])
        chain = hashlib.sha256("\n".join(blob.digest for blob in root).encode()).hexdigest()
        tars = [self._store.cas.path(blob.digest) for blob in root]
        return self._store.trees.get(f"merged-{chain}", lambda into: _extract_all(tars, into))

    def _layer(self, blob: Blob) -> Path:
        tar = self._store.cas.path(blob.digest)
        return self._store.trees.get(f"layer-{blob.hex}", lambda into: _extract(tar, into, overlay=True))


def _extract(tar: Path, into: Path, *, overlay: bool) -> None:
    from kairosbuild.oci.extract import extract

    extract(tar, into, owners="dropped", overlay=overlay)


def _extract_all(tars: Sequence[Path], into: Path) -> None:
    for tar in tars:
        whiteouts = _make_room(tar, into)
        _extract(tar, into, overlay=False)
        for path in whiteouts:
            path.unlink(missing_ok=True)


def _make_room(tar: Path, into: Path) -> list[Path]:
    """Remove from the layers below what this one hides or replaces; return where its whiteouts will be."""
    from kairosbuild.oci.entry import hidden_by, is_opaque, is_whiteout, parent
    from kairosbuild.oci.reader import read_tar

    whiteouts: list[Path] = []
    with tar.open("rb") as stream:
        for entry, _ in read_tar(stream):
            if is_opaque(entry.path):
                _clear(into, parent(entry.path))
            elif is_whiteout(entry.path):
                _remove(into, hidden_by(entry.path))
            elif entry.type != "dir":
                _remove(into, entry.path)
            if is_whiteout(entry.path):
                whiteouts.append(into / entry.path)
    return whiteouts


def _clear(into: Path, folder: str) -> None:
    if _inside(into, folder) and (into / folder).is_dir() and not (into / folder).is_symlink():
        for child in (into / folder).iterdir():
            _remove(into, str(child.relative_to(into)))


def _remove(into: Path, path: str) -> None:
    place = into / path
    if not _inside(into, path) or not os.path.lexists(place):
        return
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def _inside(into: Path, path: str) -> bool:
    """Whether no link stands on the way, which could lead out of the tree."""
    folder = (into / path).parent
    return folder.resolve() == into.resolve() / folder.relative_to(into)
