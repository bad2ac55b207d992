"""Everything that needs graph theory. The only user of networkx.

Edges run from what is needed to what needs it, so that a topological order is a build order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import networkx as nx

from kairosbuild.core.errors import InputError, Origin
from kairosbuild.graph.graph import Graph

if TYPE_CHECKING:
    DiGraph = nx.DiGraph[str]

Edges = Mapping[str, Sequence[str]]
"""Node → the nodes it needs; every needed node is a key too."""


def build(edges: Edges, origins: Mapping[str, Origin | None] | None = None) -> Graph:
    """The graph in a build order that depends on the order of `edges` alone.

    A cycle is an InputError (`cycle`) that prints it as a path.
    """
    try:
        names = tuple(nx.topological_sort(digraph(edges)))
    except nx.NetworkXUnfeasible:
        path = cycle(edges)
        raise InputError(
            "nodes need each other in a circle: " + " → ".join(path),
            reason="cycle",
            hint="one of these references must go",
            origin=(origins or {}).get(path[0]),
        ) from None
    index = {name: i for i, name in enumerate(names)}
    return Graph(names, tuple(tuple(sorted({index[d] for d in edges[name]})) for name in names))


def digraph(edges: Edges) -> DiGraph:
    """The networkx form."""
    graph: DiGraph = nx.DiGraph()
    graph.add_nodes_from(edges)
    graph.add_edges_from((need, name) for name, needs in edges.items() for need in needs)
    return graph


def cycle(edges: Edges) -> tuple[str, ...]:
    """One cycle as a path that ends where it began (each needs the next), or nothing."""
    try:
        found = nx.find_cycle(digraph(edges))
    except nx.NetworkXNoCycle:
        return ()
    path = [found[0][0], *(edge[1] for edge in found)]
    path.reverse()
    start = min(range(len(path) - 1), key=path.__getitem__)
    return (*path[start:-1], *path[: start + 1])


def layers(edges: Edges) -> list[list[str]]:
    """Generations: nothing in one needs anything of its own or a later one."""
    return [list(generation) for generation in nx.topological_generations(digraph(edges))]


def deps(edges: Edges, name: str) -> set[str]:
    """Everything a node needs, near and far."""
    return set(nx.ancestors(digraph(edges), name))


def rdeps(edges: Edges, name: str) -> set[str]:
    """Everything that needs a node, near and far."""
    return set(nx.descendants(digraph(edges), name))


def somepath(edges: Edges, start: str, end: str) -> tuple[str, ...]:
    """A shortest chain from `start` down to `end` in which each needs the next, or nothing."""
    try:
        return tuple(reversed(nx.shortest_path(digraph(edges), end, start)))
    except nx.NetworkXNoPath:
        return ()
