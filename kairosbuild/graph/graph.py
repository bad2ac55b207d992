"""The graph as plain tuples: nodes in topological order and what each needs, by index.

`graph.dag` makes one with networkx; everything that only walks it needs nothing but this, so a
build in which nothing changed can read it back without a library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Graph:
    """`names` is a topological order; `deps[i]` are the indices that node `i` needs, all below `i`."""

    names: tuple[str, ...]
    deps: tuple[tuple[int, ...], ...]

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Name → index."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def rdeps(self) -> tuple[tuple[int, ...], ...]:
        """The indices that need each node, ascending."""
        found: list[list[int]] = [[] for _ in self.names]
        for i, needs in enumerate(self.deps):
            for j in needs:
                found[j].append(i)
        return tuple(map(tuple, found))

    def closure(self, targets: Iterable[int]) -> list[int]:
        """These nodes and everything they need, in topological order."""
        return _reach(targets, self.deps)

    def dependants(self, nodes: Iterable[int]) -> list[int]:
        """These nodes and everything that needs them, in topological order."""
        return _reach(nodes, self.rdeps)

    def remaining(self, durations: Mapping[int, float]) -> dict[int, float]:
        """For each of these nodes the longest path from its start to the end of the build, among them alone.

        The durations are of any unit, which is the result's too.
        """
        left: dict[int, float] = {}
        for i in sorted(durations, reverse=True):
            after = [left[j] for j in self.rdeps[i] if j in left]
            left[i] = durations[i] + (max(after) if after else 0.0)
        return left


def _reach(start: Iterable[int], step: Sequence[Sequence[int]]) -> list[int]:
    seen = set(start)
    if len(seen) == len(step):
        return list(range(len(step)))
    todo = list(seen)
    while todo:
        for j in step[todo.pop()]:
            if j not in seen:
                seen.add(j)
                todo.append(j)
    return sorted(seen)
