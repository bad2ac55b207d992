"""One question to the engine: from recipe and memory to work, and back to memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.core.events import Events
from kairosbuild.execute import memo, preflight, remember
from kairosbuild.execute.dispatcher import Dispatcher, Options
from kairosbuild.execute.engine import Found, Outcome, Request, Wiring, input_paths
from kairosbuild.execute.executor import Executor
from kairosbuild.execute.inputs import Inputs
from kairosbuild.execute.nodes import TOOLS, Node, Report, Work
from kairosbuild.execute.results import Results
from kairosbuild.execute.selection import chosen, only
from kairosbuild.execute.task import Bench
from kairosbuild.graph.graph import Graph
from kairosbuild.graph.node import Material
from kairosbuild.recipe import lockfile
from kairosbuild.recipe.declaration import Declaration, Recipe

if TYPE_CHECKING:
    from kairosbuild.execute.lock import LockPhase, Relocked
    from kairosbuild.execute.plan import Planned
    from kairosbuild.recipe.lockfile import LockFile


class Session:
    """Everything that one question needs, made when it is first asked for."""

    def __init__(self, request: Request, wiring: Wiring, events: Events, memory: memo.Memory | None) -> None:
        self._request, self._wiring, self._events, self._memory = request, wiring, events, memory
        self._cancel = wiring.cancel or threading.Event()
        self._path = memo.place(request.store, request.recipe, request.vars.items())
        self._scope = os.path.abspath(request.recipe) + "#"  # noqa: PTH100
        self._inputs = Inputs(input_paths(request))
        self._lock_path = Path(input_paths(request)[1])

    # -- the questions -------------------------------------------------------------------------

    def evaluate(self) -> Outcome:
        """See `engine.evaluate`."""
        work, targets = self._prepared()
        preflight.refuse(work, self._dirty, work.graph.closure(targets))
        report = self._run(work, targets)
        self._remember(report)
        return self._outcome(work, targets, report)

    def _run(self, work: Work, targets: list[int]) -> Report:
        """Bring the targets up to date, once more for as long as a shared cache turns out to lack what it said."""
        dirty, lost = self._dirty, set(self._results.lost)
        report = self._dispatcher(work).run(dirty, targets)
        while report.evicted and not report.interrupted and self._results.lost > lost:
            lost = set(self._results.lost)
            dirty = {i for i in work.graph.closure(targets) if self._is_lost(work.nodes[i])}
            self._events.emit("note", message=f"{len(lost)} blobs are gone from the cache; made again")
            report = report.followed_by(self._dispatcher(work).run(dirty, targets))
        return report

    def _is_lost(self, node: Node) -> bool:
        return node.result is None or self._results.is_lost(node.result.key)

    def plan(self, nodes: Sequence[str] = ()) -> tuple[Planned, ...]:
        """See `engine.plan`."""
        work, targets = self._prepared(nodes)
        from kairosbuild.execute.plan import Planner

        preflight.refuse(work, self._dirty, work.graph.closure(targets))
        planner = Planner(work, self._results, self._store.sources.digest, self._scope)
        planned = planner.run(work.graph.closure(targets), self._dirty)
        self._store.sources.save()
        return planned

    def why(self, node: str) -> tuple[str, ...]:
        """See `engine.why`."""
        planned = {one.name: one for one in self.plan([node])}
        return _told(planned, only(node, planned))

    def edges(self) -> dict[str, tuple[str, ...]]:
        """See `engine.edges_of`."""
        return {node.name: node.needs for node in self._declared}

    def lock(self, update: Sequence[str] | None, *, write: bool = True) -> Relocked:
        """See `engine.lock`."""
        from kairosbuild.execute.lock import Relocked, file_of

        names = {node.name for node in self._declared}
        wanted = () if update is None else chosen(update, names) or names
        phase = self._phase(work := self._fresh, update=wanted)
        before = file_of(phase.entries)
        with self._store.lease(), self._interruptible():
            phase.run(work.nodes[i] for i in range(len(work.graph.names)))
        after = self._keep_lock(phase, names, write=write)
        return Relocked(tuple(phase.resolved), before, after)

    def tools(self, purpose: str) -> Blob:
        """See `engine.tools`."""
        phase = self._phase(self._fresh)
        layer = self._tools_layer(purpose)
        if phase.resolved:
            self._keep_lock(phase, None)
        return layer

    def refresh(self) -> None:
        """Count the records of the memory as used now, so that garbage collection passes them by."""
        memory = self._memory
        assert memory is not None
        lines = (memory.node(i) for i in range(len(memory.names)))
        self._store.actions.get_many([line[4][0] for line in lines if line[4]])
        memory.touch()

    # -- the work ------------------------------------------------------------------------------

    def _prepared(self, nodes: Sequence[str] = ()) -> tuple[Work, list[int]]:
        """The work, locked as far as the targets reach, and the targets."""
        work, reused = self._reused() or (self._fresh, False)
        targets = self._targets(work, nodes or self._request.nodes)
        closure = work.graph.closure(targets)
        if reused and self._memory and not set(self._memory.head["unlocked"]).isdisjoint(closure):
            work, reused = self._fresh, False
            targets = self._targets(work, nodes or self._request.nodes)
            closure = work.graph.closure(targets)
        self._work = work
        if reused and self._memory:
            self._unlocked: set[int] = set(self._memory.head["unlocked"])
            self._dirty: set[int] = self._memory.dirty
        else:
            self._lock_phase(work, closure)
            self._dirty = self._carried(work)
        return work, targets

    def _reused(self) -> tuple[Work, bool] | None:
        """The work as the memory has it, when the recipe and our code are what they were."""
        memory = self._memory
        if memory is None or not memory.same_code or not memory.current(input_paths(self._request)):
            return None
        head = memory.head
        nodes = remember.Remembered(memory, self._kinds)
        return Work(remember.graph_of(memory), nodes, head["platform"], head["epoch"], head["root"]), True

    def _carried(self, work: Work) -> set[int]:
        if self._memory is None:
            return set(work.nodes)
        return remember.carry(work, self._memory, self._kinds)

    @cached_property
    def _recipe(self) -> Recipe:
        self._inputs.look()
        recipe = self._wiring.recipe()
        self._inputs.included(recipe.files)
        return recipe

    @cached_property
    def _declared(self) -> list[Node]:
        """The recipe's nodes, then the tools trees that they and each other need."""
        nodes = {one.name: self._node(one) for one in self._recipe.nodes}
        todo = list(nodes.values())
        while todo:
            for purpose in todo.pop().tools:
                if TOOLS + purpose not in nodes:
                    nodes[TOOLS + purpose] = node = self._node(self._wiring.tools(purpose))
                    todo.append(node)
        return list(nodes.values())

    def _node(self, declaration: Declaration) -> Node:
        node = Node(declaration, self._kinds)
        node.tools = tuple(node.kind.tools(node.spec))
        return node

    @cached_property
    def _fresh(self) -> Work:
        """The work out of the recipe."""
        from kairosbuild.graph import dag

        declared = {node.name: node for node in self._declared}
        origins = {name: node.declaration.origin for name, node in declared.items()}
        graph = dag.build({name: node.needs for name, node in declared.items()}, origins)
        recipe, nodes = self._recipe, {i: declared[name] for i, name in enumerate(graph.names)}
        return Work(graph, nodes, recipe.platform, recipe.epoch, os.path.realpath(recipe.root))

    def _targets(self, work: Work, nodes: Sequence[str]) -> list[int]:
        index = work.graph.index
        if not nodes:
            return list(range(len(index)))  # a tools tree is there because a node needs it
        return [index[name] for name in chosen(nodes, index)]

    # -- locking -------------------------------------------------------------------------------

    def _lock_phase(self, work: Work, closure: Sequence[int]) -> None:
        phase = self._phase(work, frozen=self._request.locked)
        with self._store.lease(), self._interruptible():
            phase.run(work.nodes[i] for i in closure)
        self._unlocked = set(range(len(work.graph.names))) - set(closure)
        if phase.resolved:
            first = not self._lock_path.exists()
            self._keep_lock(phase, None if self._unlocked else set(work.graph.names))
            self._tell_lock(phase, first)

    def _tell_lock(self, phase: LockPhase, first: bool) -> None:
        what = ", ".join(phase.resolved)
        if first:
            message = f"no lock yet: resolved {what} into {self._lock_path.name}; keep it with the recipe"
        else:
            message = f"{self._lock_path.name}: resolved {what}, which was not in it as it is now"
        self._events.emit("note", message=message)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """What fails because the run shall stop is that, and no failure."""
        try:
            yield
        except KbuildError as error:
            if self._cancel.is_set():
                raise KeyboardInterrupt from error
            raise

    def _phase(self, work: Work, *, frozen: bool = False, update: Collection[str] = ()) -> LockPhase:
        from kairosbuild.execute.lock import LockPhase, Means, entries_of

        name = self._request.recipe
        file = lockfile.read(self._lock_path, recipe=name)
        means = Means(
            self._store,
            lambda: self._results,
            lambda: self._executor,
            self._file,
            self._tools_layer,
            self._events,
            self._cancel,
            work.platform,
            work.epoch,
            self._recipe.given,
            self._wiring.witness(),
        )
        self._locking = LockPhase(
            means, work.named, entries_of(file), frozen=frozen, update=update, command=self._lock_command()
        )
        return self._locking

    def _lock_command(self) -> str:
        """What a person types to lock just this."""
        return lockfile.slot(f"kbuild lock {self._request.recipe}", self._request.vars)

    def _keep_lock(self, phase: LockPhase, names: Collection[str] | None, *, write: bool = True) -> LockFile:
        """Write the lock file. With `names`, which are all nodes there are, entries of others are dropped."""
        from kairosbuild.execute.lock import entries_of, file_of, outdated

        kept = dict(phase.entries)
        if write:  # another run may have locked other nodes meanwhile
            kept |= entries_of(lockfile.read(self._lock_path))
            kept |= {slot: phase.entries[slot] for slot in phase.touched if slot in phase.entries}
        there = names if names is not None else phase.slots.keys()
        whole = names is not None and not self._request.vars
        dropped = outdated(kept, self._recipe, there, whole) if names is not None else set()
        dropped |= {slot for slot in phase.slots.values() if slot not in phase.entries}
        found = file_of({slot: entry for slot, entry in kept.items() if slot not in dropped})
        if write:
            lockfile.write(self._lock_path, found)
            self._inputs.wrote(str(self._lock_path))
        return found

    def _file(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        found: Path = self._files(uri, digest=digest, size=size)
        return found

    def _tools_layer(self, purpose: str) -> Blob:
        """A tools tree for locking: locked and built now."""
        name = TOOLS + purpose
        node = self._tools_node(name, purpose)
        self._locking.lock(node)
        if node.result is None:
            means = self._locking.means
            work = Work(Graph((name,), ((),)), {0: node}, means.platform, means.epoch, "/")
            report = self._dispatcher(work).run([0], [0])
            if report.interrupted:
                raise KeyboardInterrupt
            for error in report.failed.values():
                raise error
        assert node.result is not None, name
        layer = node.result.outputs["layer"]
        if self._results.bring([layer]):
            node.result = None  # the shared cache lacks what it promised: now it is built
            return self._tools_layer(purpose)
        return layer

    def _tools_node(self, name: str, purpose: str) -> Node:
        if name in self._fresh.graph.index:
            return self._fresh.named(name)
        if name not in self._spare:
            self._spare[name] = self._node(self._wiring.tools(purpose))
        return self._spare[name]

    @cached_property
    def _spare(self) -> dict[str, Node]:
        """Tools trees that only locking needs."""
        return {}

    # -- running -------------------------------------------------------------------------------

    def _dispatcher(self, work: Work) -> Dispatcher:
        bench = Bench(
            self._store,
            self._results,
            lambda: self._executor,
            self._events,
            self._cancel,
            work.platform,
            work.epoch,
            self._store.cas.root / "tmp",
        )
        options = Options(self._request.jobs, self._request.keep_going)
        hasher = self._store.sources.digest
        return Dispatcher(work, bench, fetch=self._fetch, hasher=hasher, options=options)

    def _fetch(self, materials: Sequence[Material]) -> object:
        return self._materials(materials)

    # -- afterwards ----------------------------------------------------------------------------

    def _remember(self, report: Report) -> None:
        work = self._work
        self._store.sources.save()
        known = {
            f"{self._scope}{work.graph.names[i]}": one.key
            for i, one in report.results.items()
            if one.where != "memory"
        }
        if known:
            self._store.actions.set_last(known)
        self._drop_unreached(report)
        remember.write(self._path, work, self._head(), f"{self._store.cas.root}/blobs/sha256/", self._memory)

    def _drop_unreached(self, report: Report) -> None:
        """A dirty node that was not asked for keeps no result: the next run has to look at it."""
        for i in self._dirty:
            if i not in report.results and self._work.nodes[i].result is not None:
                self._work.nodes[i].result = None

    def _head(self) -> dict[str, Any]:
        unlocked = sorted(self._unlocked)
        if self._memory and isinstance(self._work.nodes, remember.Remembered):
            return {**self._memory.head, "unlocked": unlocked}
        recipe, publish = self._recipe, self._recipe.publish
        origin = [publish.origin.file, publish.origin.line, publish.origin.column] if publish.origin else None
        return {
            "name": recipe.name,
            "root": self._work.root,
            "epoch": recipe.epoch,
            "platform": recipe.platform,
            "publish": [
                publish.targets,
                publish.to,
                publish.tags,
                publish.requires,
                origin,
                publish.cells,
                publish.sbom,
                publish.provenance,
                publish.sign,
            ],
            "inputs": self._inputs.identities(),
            "includes": self._inputs.includes(),
            "unlocked": unlocked,
        }

    def _outcome(self, work: Work, targets: Iterable[int], report: Report) -> Outcome:
        names, total = work.graph.names, len(work.graph.closure(targets))
        return Outcome(
            self._head(),
            _Found(work),
            total=total,
            unchanged=total - report.active + report.count("memory"),
            built=report.count("built"),
            hits=report.count("hit"),
            failed={names[i]: error for i, error in report.failed.items()},
            skipped={names[i]: names[j] for i, j in report.skipped.items()},
            interrupted=report.interrupted,
        )

    # -- what is made once ---------------------------------------------------------------------

    @cached_property
    def _store(self) -> Any:
        return self._wiring.store()

    @cached_property
    def _kinds(self) -> Any:
        return self._wiring.kinds()

    @cached_property
    def _executor(self) -> Executor:
        return self._wiring.executor(self._store)

    @cached_property
    def _materials(self) -> Any:
        return self._wiring.materials(self._store)

    @cached_property
    def _files(self) -> Any:
        return self._wiring.files(self._store)

    @cached_property
    def _results(self) -> Results:
        store = self._store
        return self._wiring.results(store) if self._wiring.results else Results(store)


class _Found(Mapping[str, Found]):
    """The results of a work by name."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __getitem__(self, name: str) -> Found:
        node = self._work.named(name)
        if node.result is None:
            raise KeyError(name)
        return Found(node.declaration.kind, node.result.key, node.result.outputs)

    def __iter__(self) -> Any:
        return iter(self._work.graph.names)

    def __len__(self) -> int:
        return len(self._work.graph.names)


def _told(planned: Mapping[str, Planned], name: str) -> tuple[str, ...]:
    """Why a node would run; for one that waits, why the nodes it waits for would."""
    one = planned[name]
    if one.state != "wait":
        return one.reasons
    found: dict[str, None] = {}
    for other in planned.values():
        if other.state == "run":
            found.update(dict.fromkeys(f"{other.name}: {reason}" for reason in other.reasons))
    return (f"waits for {', '.join(one.waits)}", *found)
