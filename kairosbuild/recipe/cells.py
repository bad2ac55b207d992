"""Nodes as read to nodes as they are built: in which cells of the matrix each one is, and under which names.

A node is read once for each combination of the axes that its own text depends on. What it names may depend
on more axes, so it may be built more often than it is read; the declarations then differ in references only.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.recipe.checks import Node
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.instances import info_of
from kairosbuild.recipe.located import Located, Text
from kairosbuild.recipe.matrix import Cell, Matrix, platform_of, restricted, suffixed
from kairosbuild.recipe.publication import PublishedCell
from kairosbuild.recipe.typed import Typed

CellKey = tuple[tuple[str, str], ...]


@dataclass
class Raw:
    """A node as read: what it came to in each cell of its own axes, None where its `when` leaves it out."""

    name: str
    kind: str
    key: Text
    axes: frozenset[str] = frozenset()
    given: Mapping[str, str] = field(default_factory=dict)  # what --set changed that its text depends on
    typed: dict[CellKey, Typed | None] = field(default_factory=dict)

    def of(self, cell: Cell) -> Typed | None:
        """What it came to in this cell of these and more axes."""
        return self.typed[key_of(restricted(cell, self.axes))] if self.axes else self.typed[()]

    @property
    def readings(self) -> list[Typed]:
        """What it came to wherever it is."""
        return [typed for typed in self.typed.values() if typed is not None]


def key_of(cell: Cell) -> CellKey:
    """A cell as a key."""
    return tuple(cell.items())


class Expansion:
    """All nodes of a recipe in all their cells. Every reference leads to a node that was read."""

    def __init__(self, raws: Sequence[Raw], matrix: Matrix, kinds: Mapping[str, Any]) -> None:
        self._raws, self._matrix, self._kinds = raws, matrix, kinds
        users = _users(raws) if any(raw.axes or raw.given for raw in raws) else {}
        self._axes = _spread({raw.name: raw.axes for raw in raws}, users)
        self._given = _spread({raw.name: frozenset(raw.given.items()) for raw in raws}, users)
        self.problems: list[KbuildError] = []
        self.cells: dict[str, list[Cell]] = {}
        """The cells that each node is in, by its own name."""
        self._there: set[str] = set()
        for raw in raws:
            self.cells[raw.name] = [cell for cell in self._cells(raw) if raw.of(cell) is not None]
            self._there.update(suffixed(raw.name, cell) for cell in self.cells[raw.name])

    def nodes(self) -> list[Node]:
        """Every node in every cell, in the order written."""
        return [self._node(raw, cell) for raw in self._raws for cell in self.cells[raw.name]]

    def names(self, name: str) -> tuple[str, ...]:
        """The names of one node in its cells."""
        return tuple(suffixed(name, cell) for cell in self.cells[name])

    def _cells(self, raw: Raw) -> list[Cell]:
        axes = self._axes.get(raw.name)
        return self._matrix.projected(axes) if axes else [{}]

    def _node(self, raw: Raw, cell: Cell) -> Node:
        typed, kind = raw.of(cell), self._kinds[raw.kind]
        assert typed is not None
        name = suffixed(raw.name, cell)
        refs: Mapping[str, tuple[str, ...]] = typed.refs
        spec: Mapping[str, Any] = typed.spec
        if len(self._there) < len(self._raws) or self._matrix.axes:
            refs, spec = self._resolved(raw, typed, cell)
        given = dict(self._given.get(raw.name, ()))
        made = Declaration(
            name, raw.kind, spec, refs, typed.sources, typed.hints, raw.key.origin, given, platform_of(cell)
        )
        return Node(made, typed, kind, raw.key)

    def _resolved(self, raw: Raw, typed: Typed, cell: Cell) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """References as they are in this cell; those to nodes that are not there fall out of lists."""
        refs: dict[str, tuple[str, ...]] = {}
        spec: Mapping[str, Any] = typed.spec
        for role, names in typed.refs.items():
            info = info_of(self._kinds[raw.kind].Spec, role)
            resolved = [(name, suffixed(name, restricted(cell, self._axes.get(name, ())))) for name in names]
            absent = [name for name, found in resolved if found not in self._there]
            kept = tuple(found for _, found in resolved if found in self._there)
            if absent and (info.type == "ref" or len(kept) < info.least):
                self._complain(raw, typed, absent[0], cell)
            if kept or not absent or info.type == "refs":
                refs[role] = kept
            if absent and info.names:
                spec = _without(spec, role, absent)
        return refs, spec

    def _complain(self, raw: Raw, typed: Typed, absent: str, cell: Cell) -> None:
        at: Located = next(mention.at for mention in typed.nodes if mention.name == absent)
        where = f" in {', '.join(f'{axis} {value}' for axis, value in cell.items())}" if cell else ""
        self.problems.append(
            InputError(
                f"{raw.name}: its {absent!r} is left out by a `when`{where}",
                reason="absent-node",
                hint=f"give {raw.name!r} the same `when`; only a list does without what is not there",
                origin=at.origin,
            )
        )


def _users(raws: Sequence[Raw]) -> dict[str, set[str]]:
    """The nodes that name each node."""
    found: dict[str, set[str]] = {}
    for raw in raws:
        for typed in raw.readings:
            for names in typed.refs.values():
                for name in names:
                    found.setdefault(name, set()).add(raw.name)
    return found


ItemT = TypeVar("ItemT")


def _spread(
    own: Mapping[str, frozenset[ItemT]], users: Mapping[str, Collection[str]]
) -> dict[str, frozenset[ItemT]]:
    """What each node has of its own and by way of all that it names, near and far."""
    todo = [name for name, items in own.items() if items]
    if not todo:
        return {}
    found = dict(own)
    while todo:
        name = todo.pop()
        for user in users.get(name, ()):
            if not found[name] <= found[user]:
                found[user] |= found[name]
                todo.append(user)
    return found


def _without(spec: Mapping[str, Any], role: str, absent: Sequence[str]) -> Mapping[str, Any]:
    """The spec whose list of names at this role lacks some."""
    made = copy.deepcopy(dict(spec))
    *above, last = role.split(".")
    at: Any = made
    for part in above:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if isinstance(at[last], list):
        at[last] = [name for name in at[last] if name not in absent]
    else:
        del at[last]
    return made


def published(
    expansion: Expansion, nodes: Sequence[Node], targets: Sequence[str], requires: Sequence[str]
) -> dict[str, PublishedCell]:
    """How each published node of a matrix is named, what it belongs to, and what must have passed for it."""
    by_name = {node.name: node for node in nodes}
    cells = {
        suffixed(name, cell): (name, cell) for name in {*targets, *requires} for cell in expansion.cells[name]
    }
    every = [each for name in targets for each in expansion.names(name)]
    images = {name for name in every if by_name[name].kind.produces == "image"}
    return {
        each: PublishedCell(
            cells[each][0],
            "-".join(cells[each][1].values()),
            _nearest(each, by_name, images),
            tuple(
                gate
                for required in requires
                for gate in expansion.names(required)
                if _agree(cells[gate][1], cells[each][1])
            ),
        )
        for each in every
    }


def _nearest(start: str, nodes: Mapping[str, Node], among: set[str]) -> str:
    """The first of these that a node needs, breadth first; "" for none."""
    seen, todo = {start}, [start]
    for name in todo:
        if name in among and name != start:
            return name
        for names in nodes[name].declaration.refs.values():
            todo += [each for each in names if each not in seen]
            seen.update(names)
    return ""


def _agree(one: Cell, other: Cell) -> bool:
    return all(other.get(axis, value) == value for axis, value in one.items())
