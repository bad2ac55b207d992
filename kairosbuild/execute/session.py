"""One question to the engine: from recipe and memory to work, and back to memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.events import Events
from kairosbuild.execute import memo, preflight, remember
from kairosbuild.execute.declared import Declared
from kairosbuild.execute.engine import Found, Outcome, Request, Wiring, input_paths
from kairosbuild.execute.equipment import Equipment
from kairosbuild.execute.inputs import Inputs
from kairosbuild.execute.nodes import Node, Report, Work
from kairosbuild.execute.selection import chosen, only, output_of

if TYPE_CHECKING:
    from kairosbuild.execute.lock import Relocked
    from kairosbuild.execute.locking import Locking
    from kairosbuild.execute.plan import Planned


class Session:
    """Everything that one question needs, made when it is first asked for."""

    def __init__(self, request: Request, wiring: Wiring, events: Events, memory: memo.Memory | None) -> None:
        self._request, self._wiring, self._events, self._memory = request, wiring, events, memory
        self._path = memo.place(request.store, request.recipe, request.vars.items())
        self._scope = os.path.abspath(request.recipe) + "#"  # noqa: PTH100
        self._inputs = Inputs(input_paths(request))
        self._declared = Declared(wiring, self._inputs)
        self._with = Equipment(request, wiring, events)

    # -- the questions -------------------------------------------------------------------------

    def evaluate(self) -> Outcome:
        """See `engine.evaluate`."""
        work, targets = self._prepared()
        closure = work.graph.closure(targets)
        preflight.refuse(work, self._dirty, closure)
        if open_ := self._dirty.intersection(closure):
            self._foresee(work, closure, set(closure).difference(work.graph.dependants(open_)))
        report = self._run(work, targets)
        self._remember(report)
        return self._outcome(work, targets, report)

    def _run(self, work: Work, targets: list[int]) -> Report:
        """Bring the targets up to date, once more for as long as a shared cache turns out to lack what it said."""
        dirty, lost = self._dirty, set(self._with.results.lost)
        report = self._with.dispatcher(work).run(dirty, targets)
        while report.evicted and not report.interrupted and self._with.results.lost > lost:
            lost = set(self._with.results.lost)
            dirty = {i for i in work.graph.closure(targets) if self._is_lost(work.nodes[i])}
            self._events.emit("note", message=f"{len(lost)} blobs are gone from the cache; made again")
            report = report.followed_by(self._with.dispatcher(work).run(dirty, targets))
        return report

    def _is_lost(self, node: Node) -> bool:
        return node.result is None or self._with.results.is_lost(node.result.key)

    def plan(self, nodes: Sequence[str] = ()) -> tuple[Planned, ...]:
        """See `engine.plan`."""
        work, targets = self._prepared(nodes)
        from kairosbuild.execute.plan import Planner

        closure = work.graph.closure(targets)
        preflight.refuse(work, self._dirty, closure)
        planner = Planner(work, self._with.results, self._with.store.sources.digest, self._scope)
        planned = planner.run(closure, self._dirty)
        hits = {work.graph.index[one.name] for one in planned if one.state == "hit"}
        self._foresee(work, closure, hits)
        self._with.store.sources.save()
        return planned

    def _foresee(self, work: Work, closure: Sequence[int], sure: set[int]) -> None:
        cas = self._with.store.cas
        preflight.foresee(work, closure, sure, lambda blob: cas.path(blob.digest))

    def why(self, node: str) -> tuple[str, ...]:
        """See `engine.why`."""
        planned = {one.name: one for one in self.plan([node])}
        return _told(planned, only(node, planned))

    def edges(self) -> dict[str, tuple[str, ...]]:
        """See `engine.edges_of`."""
        return {node.name: node.needs for node in self._declared.nodes}

    def lock(self, update: Sequence[str] | None, *, write: bool = True) -> Relocked:
        """See `engine.lock`."""
        wanted = () if update is None else chosen(update, self._declared.names) or self._declared.names
        return self._locking.relock(wanted, write=write)

    def tools(self, purpose: str) -> Blob:
        """See `engine.tools`."""
        return self._locking.tools(purpose)

    def refresh(self) -> None:
        """Count the records of the memory as used now, so that garbage collection passes them by."""
        memory = self._memory
        assert memory is not None
        lines = (memory.node(i) for i in range(len(memory.names)))
        self._with.store.actions.get_many([line[4][0] for line in lines if line[4]])
        memory.touch()

    # -- the work ------------------------------------------------------------------------------

    def _prepared(self, nodes: Sequence[str] = ()) -> tuple[Work, list[int]]:
        """The work, locked as far as the targets reach, and the targets."""
        work, reused = self._reused() or (self._declared.work, False)
        targets = self._targets(work, nodes or self._request.nodes)
        closure = work.graph.closure(targets)
        for word in self._request.copied:
            output_of(word, [work.graph.names[i] for i in closure])
        if reused and self._memory and not set(self._memory.head["unlocked"]).isdisjoint(closure):
            work, reused = self._declared.work, False
            targets = self._targets(work, nodes or self._request.nodes)
            closure = work.graph.closure(targets)
        self._work = work
        if reused and self._memory:
            self._unlocked: set[int] = set(self._memory.head["unlocked"])
            self._dirty: set[int] = self._memory.dirty
        else:
            self._locking.lock(work, closure)
            self._unlocked = set(range(len(work.graph.names))) - set(closure)
            self._dirty = self._carried(work)
        return work, targets

    def _reused(self) -> tuple[Work, bool] | None:
        """The work as the memory has it, when the recipe and our code are what they were."""
        memory = self._memory
        if memory is None or not memory.same_code or not memory.current(input_paths(self._request)):
            return None
        head = memory.head
        nodes = remember.Remembered(memory, self._declared.kinds)
        return Work(remember.graph_of(memory), nodes, head["platform"], head["epoch"], head["root"]), True

    def _carried(self, work: Work) -> set[int]:
        if self._memory is None:
            return set(work.nodes)
        return remember.carry(work, self._memory, self._declared.kinds)

    @cached_property
    def _locking(self) -> Locking:
        from kairosbuild.execute.locking import Locking

        file = Path(input_paths(self._request)[1])
        return Locking(self._request, self._wiring, self._with, self._declared, self._inputs, file)

    def _targets(self, work: Work, nodes: Sequence[str]) -> list[int]:
        index = work.graph.index
        if not nodes:
            return list(range(len(index)))  # a tools tree is there because a node needs it
        return [index[name] for name in chosen(nodes, index)]

    # -- afterwards ----------------------------------------------------------------------------

    def _remember(self, report: Report) -> None:
        work = self._work
        self._with.store.sources.save()
        known = {
            f"{self._scope}{work.graph.names[i]}": one.key
            for i, one in report.results.items()
            if one.where != "memory"
        }
        if known:
            self._with.store.actions.set_last(known)
        self._drop_unreached(report)
        remember.write(
            self._path, work, self._head(), f"{self._with.store.cas.root}/blobs/sha256/", self._memory
        )

    def _drop_unreached(self, report: Report) -> None:
        """A dirty node that was not asked for keeps no result: the next run has to look at it."""
        for i in self._dirty:
            if i not in report.results and self._work.nodes[i].result is not None:
                self._work.nodes[i].result = None

    def _head(self) -> dict[str, Any]:
        unlocked = sorted(self._unlocked)
        if self._memory and isinstance(self._work.nodes, remember.Remembered):
            return {**self._memory.head, "unlocked": unlocked}
        recipe = self._declared.recipe
        publish = recipe.publish
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
