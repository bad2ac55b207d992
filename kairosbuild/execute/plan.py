"""The plan: for every node whether it is a hit (and from where), would run (and why), or waits (for whom)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from kairosbuild.execute import keying
from kairosbuild.execute.nodes import Node, Result, Work
from kairosbuild.execute.results import Results
from kairosbuild.execute.snapshot import Hasher
from kairosbuild.graph import explain
from kairosbuild.graph.keys import Preimage, key

State = Literal["hit", "run", "wait"]


@dataclass(frozen=True, slots=True)
class Planned:
    """One node's state. `where` says where a hit is, `reasons` why it runs, `waits` whose outputs decide."""

    name: str
    kind: str
    state: State
    where: str = ""
    key: str = ""
    reasons: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()


class Planner:
    """Looks at nodes in build order and builds none. `scope` names the recipe among last results."""

    def __init__(self, work: Work, results: Results, hasher: Hasher, scope: str) -> None:
        self._work, self._results, self._hasher, self._scope = work, results, hasher, scope
        self._found: dict[int, Planned] = {}

    def run(self, closure: Iterable[int], dirty: Collection[int]) -> tuple[Planned, ...]:
        """The state of these nodes; `dirty` ones may have changed, all others only through their inputs."""
        stale = set(dirty)
        for i in closure:
            node = self._work.nodes[i]
            before = node.result
            self._found[i] = planned = self._planned(i, node, i in stale)
            same = planned.state == "hit" and before and node.result and node.result.outputs == before.outputs
            if not same:
                stale.update(self._work.graph.rdeps[i])
        return tuple(self._found.values())

    def _planned(self, i: int, node: Node, stale: bool) -> Planned:
        plain = Planned(node.name, node.declaration.kind, "hit", "memory")
        names, deps = self._work.graph.names, self._work.graph.deps[i]
        if waits := tuple(names[j] for j in deps if self._found[j].state != "hit"):
            return replace(plain, state="wait", where="", waits=waits)
        if not stale and node.result:
            return replace(plain, key=node.result.key)
        if node.snapshots is None:
            node.snapshots = keying.snapshots(self._work.root, node, self._hasher)
        document = keying.document(self._work, node)
        return self._looked_up(plain, node, key(document), document)

    def _looked_up(self, plain: Planned, node: Node, wanted: str, document: Preimage) -> Planned:
        found = self._results.peek(wanted)
        if found:
            where, record = found
            node.result = Result(wanted, record.outputs, record.seconds, where)
            return replace(plain, where=where, key=wanted)
        reasons = explain.reasons(wanted, document, self._last(node.name))
        return replace(plain, state="run", where="", key=wanted, reasons=reasons)

    def _last(self, name: str) -> explain.Last | None:
        """The last result of a node, even if it is no longer whole."""
        actions = self._results.store.actions
        last = actions.last(self._scope + name)
        record = actions.peek(last) if last else None
        if record is None:
            return None
        missing = self._results.store.cas.missing(record.outputs.values())
        lost = tuple(sorted(name for name, blob in record.outputs.items() if blob in missing))
        return explain.Last(record.key, record.preimage, lost)
