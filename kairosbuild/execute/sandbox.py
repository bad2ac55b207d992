"""The local executors: each action in namespaces of its own, with nothing of this machine in view.

`LocalExecutor` is the one to use. It gives actions that make a layer to `LayerExecutor` and the others to
`ZygoteExecutor`, which makes the sandbox itself and is quick. Where a machine lets only bubblewrap
enter namespaces, `BubblewrapExecutor` takes their place. All of them promise what the contract
suite in tests/execute holds them to.
"""

from __future__ import annotations

import tempfile
import weakref
from functools import partial
from pathlib import Path
from threading import Event

from kairosbuild.core import process
from kairosbuild.core.errors import HostError
from kairosbuild.execute import bubblewrap, staging
from kairosbuild.execute.executor import ActionError, Executor, judge
from kairosbuild.execute.foreign import SYMPTOM, refused, runs
from kairosbuild.execute.layerstep import LayerExecutor
from kairosbuild.execute.roots import Roots
from kairosbuild.execute.zygote import Pool, Zygote, dispose, key_of
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.store.store import Store

_KEPT = 8  # idle zygotes; each is about 10 MB


class LocalExecutor:
    """The local `Executor`. `bwrap_tree` is a tools tree with bubblewrap, for where this machine has none."""

    def __init__(self, store: Store, *, epoch: int = 0, bwrap_tree: Path | None = None) -> None:
        self._layers = LayerExecutor(store, epoch=epoch)
        self._commands: Executor = ZygoteExecutor(store, epoch=epoch)
        self._spare = partial(_bubblewrap, store, epoch, bwrap_tree)

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action (see `Executor.execute`). Raises HostError (`foreign-platform`) too."""
        foreign = not runs(action.platform)
        if foreign and action.layer:
            raise refused(name, action.platform)
        try:
            return self._execute(action, name, scratch, cancel)
        except ActionError as error:
            if foreign and SYMPTOM in error.log:
                raise refused(name, action.platform) from error
            raise

    def _execute(self, action: Action, name: str, scratch: Path, cancel: Event) -> ActionResult:
        if action.layer:
            return self._layers.execute(action, name=name, scratch=scratch, cancel=cancel)
        try:
            return self._commands.execute(action, name=name, scratch=scratch, cancel=cancel)
        except HostError as error:
            if error.reason != "no-namespaces":
                raise
        self._commands = self._spare()
        return self._commands.execute(action, name=name, scratch=scratch, cancel=cancel)

    def close(self) -> None:
        """End what is kept between actions."""
        self._commands.close()


def _bubblewrap(store: Store, epoch: int, tree: Path | None) -> Executor:
    return BubblewrapExecutor(store, epoch=epoch, bwrap=bubblewrap.find_bubblewrap(tree))


class ZygoteExecutor:
    """An `Executor` that forks a prepared process for every action; it makes no layers."""

    def __init__(self, store: Store, *, epoch: int = 0) -> None:
        self._store = store
        self._roots = Roots(store)
        self._epoch = epoch
        self._pool = Pool(_KEPT)
        weakref.finalize(self, self._pool.close)  # also when this process ends

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action (see `Executor.execute`)."""
        key = key_of(action)
        zygote = self._pool.take(key) or self._new(action)
        try:
            result = self._run(zygote, action, name, cancel)
        except BaseException:
            dispose(zygote)
            raise
        self._pool.give(key, zygote)
        return result

    def close(self) -> None:
        """End the zygotes."""
        self._pool.close()

    def _new(self, action: Action) -> Zygote:
        return Zygote(self._store.cas.tmp(), self._roots.stack(action.root), action.devices)

    def _run(self, zygote: Zygote, action: Action, name: str, cancel: Event) -> ActionResult:
        staging.fill(zygote.folder, action, self._store.cas)
        env = staging.environment(action, self._epoch)
        finished = zygote.run(action, env, cancel)
        log = zygote.log()
        judge(name, finished, log)
        outputs = staging.collect(zygote.folder, action, self._store.cas, name=name, log=log)
        staging.empty(zygote.folder)
        return ActionResult(outputs, None, log, finished.seconds)


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
            self._bwrap or bubblewrap.find_bubblewrap(),
            action,
            folder=folder,
            root=self._roots.merged(action.root),
            env=staging.environment(action, self._epoch),
        )
        log = folder / "log"
        finished = process.run(words, log=log, timeout=action.timeout, cancel=cancel, umask=0o022)
        said = process.tail(log)
        judge(name, finished, said)
        outputs = staging.collect(folder, action, self._store.cas, name=name, log=said)
        return ActionResult(outputs, None, said, finished.seconds)
