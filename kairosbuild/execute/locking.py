"""The lock phase of a session: with what it resolves, and the lock file that it reads and keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.execute.declared import Declared
from kairosbuild.execute.equipment import Equipment
from kairosbuild.execute.inputs import Inputs
from kairosbuild.execute.lock import LockPhase, Means, Relocked, entries_of, file_of, outdated
from kairosbuild.execute.nodes import Node, Work
from kairosbuild.graph.graph import Graph
from kairosbuild.recipe import lockfile
from kairosbuild.recipe.lockfile import LockFile

if TYPE_CHECKING:
    from kairosbuild.execute.engine import Request, Wiring


class Locking:
    """Locks the nodes of one recipe. `path` is its lock file."""

    def __init__(
        self,
        request: Request,
        wiring: Wiring,
        equipment: Equipment,
        declared: Declared,
        inputs: Inputs,
        path: Path,
    ) -> None:
        self._request, self._wiring, self._with, self._declared = request, wiring, equipment, declared
        self._inputs, self._path = inputs, path

    def lock(self, work: Work, closure: Iterable[int]) -> None:
        """Lock these nodes of the work, and keep what was resolved for it."""
        nodes = [work.nodes[i] for i in closure]
        phase = self._phase(work, frozen=self._request.locked)
        self._run(phase, nodes)
        if phase.resolved:
            first = not self._path.exists()
            whole = len(nodes) == len(work.graph.names)
            self._keep(phase, set(work.graph.names) if whole else None)
            self._tell(phase, first)

    def relock(self, update: Collection[str], *, write: bool) -> Relocked:
        """Lock all of the recipe, `update` anew; write the lock file if so told."""
        work = self._declared.work
        phase = self._phase(work, update=update)
        before = file_of(phase.entries)
        self._run(phase, (work.nodes[i] for i in range(len(work.graph.names))))
        after = self._keep(phase, self._declared.names, write=write)
        return Relocked(tuple(phase.resolved), before, after)

    def tools(self, purpose: str) -> Blob:
        """The layer of a tools tree, locked and built if need be."""
        phase = self._phase(self._declared.work)
        layer = self._tools_layer(phase, purpose)
        if phase.resolved:
            self._keep(phase, None)
        return layer

    # -- resolving -----------------------------------------------------------------------------

    def _phase(self, work: Work, *, frozen: bool = False, update: Collection[str] = ()) -> LockPhase:
        tools = self._with
        means = Means(
            tools.store,
            lambda: tools.results,
            lambda: tools.executor,
            self._file,
            lambda purpose: self._tools_layer(phase, purpose),
            tools.events,
            tools.cancel,
            work.platform,
            work.epoch,
            self._declared.recipe.given,
            self._wiring.witness(),
        )
        entries = entries_of(lockfile.read(self._path, recipe=self._request.recipe))
        command = lockfile.slot(f"kbuild lock {self._request.recipe}", self._request.vars)
        phase = LockPhase(means, work.named, entries, frozen=frozen, update=update, command=command)
        return phase

    def _run(self, phase: LockPhase, nodes: Iterable[Node]) -> None:
        with self._with.store.lease(), self._interruptible():
            phase.run(nodes)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """What fails because the run shall stop is that, and no failure."""
        try:
            yield
        except KbuildError as error:
            if self._with.cancel.is_set():
                raise KeyboardInterrupt from error
            raise

    def _file(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        return self._with.files(uri, digest=digest, size=size)

    def _tools_layer(self, phase: LockPhase, purpose: str) -> Blob:
        """A tools tree for locking: locked and built now."""
        node = self._declared.tools(purpose)
        phase.lock(node)
        if node.result is None:
            self._build(node, phase.means)
        assert node.result is not None, node.name
        layer = node.result.outputs["layer"]
        if self._with.results.bring([layer]):
            node.result = None  # the shared cache lacks what it promised: now it is built
            return self._tools_layer(phase, purpose)
        return layer

    def _build(self, node: Node, means: Means) -> None:
        work = Work(Graph((node.name,), ((),)), {0: node}, means.platform, means.epoch, "/")
        report = self._with.dispatcher(work).run([0], [0])
        if report.interrupted:
            raise KeyboardInterrupt
        for error in report.failed.values():
            raise error

    # -- the file ------------------------------------------------------------------------------

    def _keep(self, phase: LockPhase, names: Collection[str] | None, *, write: bool = True) -> LockFile:
        """Write the lock file. With `names`, which are all nodes there are, entries of others are dropped."""
        kept = dict(phase.entries)
        if write:  # another run may have locked other nodes meanwhile
            kept |= entries_of(lockfile.read(self._path))
            kept |= {slot: phase.entries[slot] for slot in phase.touched if slot in phase.entries}
        there = names if names is not None else phase.slots.keys()
        whole = names is not None and not self._request.vars
        dropped = outdated(kept, self._declared.recipe, there, whole) if names is not None else set()
        dropped |= {slot for slot in phase.slots.values() if slot not in phase.entries}
        found = file_of({slot: entry for slot, entry in kept.items() if slot not in dropped})
        if write:
            lockfile.write(self._path, found)
            self._inputs.wrote(str(self._path))
        return found

    def _tell(self, phase: LockPhase, first: bool) -> None:
        what = ", ".join(phase.resolved)
        if first:
            message = f"no lock yet: resolved {what} into {self._path.name}; keep it with the recipe"
        else:
            message = f"{self._path.name}: resolved {what}, which was not in it as it is now"
        self._with.events.emit("note", message=message)
