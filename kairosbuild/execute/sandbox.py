"""The local executor: each action in namespaces of its own, with nothing of this machine in view."""

from __future__ import annotations

import tempfile
from pathlib import Path
from threading import Event

from kairosbuild.core import process
from kairosbuild.execute import bubblewrap, staging
from kairosbuild.execute.executor import judge
from kairosbuild.execute.roots import Roots
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.store.store import Store


class BubblewrapExecutor:
    """An `Executor` that starts bubblewrap for every action; it makes no layers."""

    def __init__(self, store: Store, *, epoch: int = 0, bwrap: tuple[str, ...] | None = None) -> None:
        self._store = store
        self._roots = Roots(store)
        self._epoch = epoch
        self._bwrap = bwrap

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action (see `Executor.execute`)."""
        folder = Path(tempfile.mkdtemp(prefix="action-", dir=scratch))
        try:
            return self._run(action, name, folder, cancel)
        finally:
            staging.remove(folder)

    def close(self) -> None:
        """Nothing is kept."""

    def _run(self, action: Action, name: str, folder: Path, cancel: Event) -> ActionResult:
        staging.prepare(folder)
        staging.fill(folder, action, self._store.cas)
        words = bubblewrap.arguments(
            self._bwrap or bubblewrap.find_bubblewrap(), action, folder=folder,
            root=self._roots.merged(action.root), env=staging.environment(action, self._epoch),
        )
        log = folder / "log"
        finished = process.run(words, log=log, timeout=action.timeout, cancel=cancel, umask=0o022)
        said = process.tail(log)
        judge(name, finished, said)
        outputs = staging.collect(folder, action, self._store.cas, name=name, log=said)
        return ActionResult(outputs, None, said, finished.seconds)
