"""Actions that change their root: an overlay of the stack, whose upper folder becomes a layer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from kairosbuild.core import process
from kairosbuild.core.digest import Blob
from kairosbuild.execute import staging, userns
from kairosbuild.execute.executor import judge
from kairosbuild.graph.action import Action, ActionResult, LayerRef
from kairosbuild.store.store import Store


class LayerExecutor:
    """An `Executor` for actions with `layer=True`. Nothing is kept between them but the unpacked layers."""

    def __init__(self, store: Store, *, epoch: int = 0) -> None:
        self._store = store
        self._epoch = epoch
        store.trees.remover = userns.remove

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action (see `Executor.execute`)."""
        folder = self._store.cas.tmp()
        try:
            staging.prepare(folder)
            staging.fill(folder, action, self._store.cas)
            return self._run(action, name, folder, cancel)
        finally:
            self._store.trees.destroy(folder)

    def close(self) -> None:
        """Nothing runs between actions."""

    def _run(self, action: Action, name: str, folder: Path, cancel: Event) -> ActionResult:
        env = staging.environment(action, self._epoch)
        request = {
            "do": "step",
            "folder": str(folder),
            "trees": [str(tree) for tree in self._trees(action.root)],
            "owners": self._owners(action.root) if userns.alone() else None,
            "command": action.command,
            "env": env,
            "cwd": action.cwd,
            "host": staging.HOSTNAME,
            "devices": action.devices,
            "drop": action.drop,
            "epoch": int(env["SOURCE_DATE_EPOCH"]),
        }
        log = folder / "log"
        with log.open("ab") as opened:
            finished, _ = userns.call(request, log=opened.fileno(), timeout=action.timeout, cancel=cancel)
        said = process.tail(log)
        judge(name, finished, said)
        outputs = staging.collect(folder, action, self._store.cas, name=name, log=said)
        layer = LayerRef(*(self._store.cas.put_file(folder / f"layer.{part}") for part in ("tar", "index")))
        return ActionResult(outputs, layer, said, finished.seconds)

    def _trees(self, root: Sequence[Blob]) -> list[Path]:
        return [self._store.trees.get(_name(blob), self._maker(blob), owned=True) for blob in root]

    def _maker(self, blob: Blob) -> _Maker:
        return _Maker(self._store.cas.path(blob.digest))

    def _owners(self, root: Sequence[Blob]) -> list[tuple[str, int, int]]:
        """Who owns what in a root, bottom to top, where its trees cannot say it."""
        found: list[tuple[str, int, int]] = []
        for blob in root:
            noted = self._store.trees.get(f"owners-{blob.hex}", _Noter(self._store.cas.path(blob.digest)))
            found += map(tuple, json.loads((noted / "owners").read_bytes()))
        named = {path for path, user, group in found if user or group}
        return [one for one in found if one[0] in named]


def _name(blob: Blob) -> str:
    """A tree's name; one whose owners are noted beside it is another tree."""
    return f"layer-{blob.hex}{'-alone' if userns.alone() else ''}"


class _Maker:
    """Unpacks a layer with its owners."""

    def __init__(self, tar: Path) -> None:
        self._tar = tar

    def __call__(self, into: Path) -> None:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        request = {"do": "extract", "tar": str(self._tar), "into": str(into), "alone": userns.alone()}
        try:
            userns.call(request, log=null)
        finally:
            os.close(null)


class _Noter:
    """Writes down the owner of each path of a layer."""

    def __init__(self, tar: Path) -> None:
        self._tar = tar

    def __call__(self, into: Path) -> None:
        from kairosbuild.oci.reader import read_tar

        with self._tar.open("rb") as stream:
            found = [(entry.path, entry.uid, entry.gid) for entry, _ in read_tar(stream)]
        into.mkdir(exist_ok=True)
        (into / "owners").write_text(json.dumps(found))
