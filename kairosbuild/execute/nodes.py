"""A node as the engine works with it: what was declared, what is locked, and what it last came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.execute.foreign import HOST
from kairosbuild.execute.snapshot import Snapshot
from kairosbuild.graph.graph import Graph
from kairosbuild.graph.node import UNLOCKED, Kind, KindTable, Locked
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.instances import typed_spec

Where = str
"""Where a result came from: `built`, `memory` (the last evaluation), `local`, or a remote's name."""

TOOLS = "tools:"
"""Prefix of the names of the nodes that are tools trees; no recipe can write such a name."""


def platform_of(declared: Declaration, platform: str) -> str:
    """What a node is for: what its cell says, or the recipe's platform; a tools tree runs on this machine."""
    return HOST if declared.name.startswith(TOOLS) else declared.platform or platform


@dataclass(frozen=True, slots=True)
class Result:
    """What a node came to: its key, its outputs, and the seconds they once took."""

    key: str
    outputs: Mapping[str, Blob]
    seconds: float = 0.0
    where: Where = "memory"


@dataclass
class Node:
    """One node. `result` and `snapshots` are of the last evaluation until this one replaces them."""

    declaration: Declaration
    kinds: KindTable = field(repr=False)
    tools: tuple[str, ...] = ()
    locked: Locked = UNLOCKED
    result: Result | None = None
    snapshots: Mapping[str, Snapshot] | None = None
    seconds: float | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.declaration.name

    @cached_property
    def kind(self) -> Kind:
        """Its kind, whose module is loaded now."""
        return self.kinds[self.declaration.kind]

    @cached_property
    def spec(self) -> Any:
        """Its spec as the kind has it."""
        return typed_spec(self.kind.Spec, self.declaration)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the nodes it needs, each once, tools trees last."""
        named = (name for names in self.declaration.refs.values() for name in names)
        return tuple(dict.fromkeys([*named, *(TOOLS + purpose for purpose in self.tools)]))


@dataclass(frozen=True)
class Work:
    """The graph with its nodes, by index. `nodes` may read them in only when they are asked for."""

    graph: Graph
    nodes: Mapping[int, Node]
    platform: str
    epoch: int
    root: str  # the workspace folder, absolute and real

    def named(self, name: str) -> Node:
        """The node of this name."""
        return self.nodes[self.graph.index[name]]


@dataclass(slots=True)
class Report:
    """What came of an evaluation, by index. `active` counts the nodes that had to be looked at."""

    results: dict[int, Result] = field(default_factory=dict)
    failed: dict[int, KbuildError] = field(default_factory=dict)
    skipped: dict[int, int] = field(default_factory=dict)  # node → the failed one it needs
    active: int = 0
    interrupted: bool = False
    evicted: bool = False  # something failed only because a shared cache did not keep its word

    def followed_by(self, other: Report) -> Report:
        """The report of two evaluations, the second of which was for what the first could not do."""
        results = {**self.results, **other.results}
        for i, one in self.results.items():
            if one.where == "built":
                results[i] = replace(results[i], where="built")
        return replace(other, results=results, active=max(self.active, len(results)))

    def count(self, what: Literal["built", "hit", "memory"]) -> int:
        """How many were built, found in a cache, or turned out to be as they were."""
        return sum(
            (one.where if one.where in ("built", "memory") else "hit") == what
            for one in self.results.values()
        )
