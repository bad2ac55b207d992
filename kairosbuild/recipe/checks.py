"""What only shows over a whole recipe: names that lead nowhere, cycles, sources that leave the workspace."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.located import Fields, Items, Located, Text
from kairosbuild.recipe.typed import Mention, Typed
from kairosbuild.recipe.variables import MOST_HINTS

MOST_CYCLES = 20
MOST_LISTED = 12

_CONTROL = re.compile("[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Node:
    """A node as read, right or wrong."""

    declaration: Declaration
    typed: Typed
    kind: Any
    key: Text

    @property
    def name(self) -> str:
        """The node's name."""
        return self.declaration.name


def references(nodes: Sequence[Node], top: Sequence[Mention], names: Collection[str]) -> list[KbuildError]:
    """Names of nodes that do not exist, are the node's own, or produce what the field does not take."""
    found = {node.name: node for node in nodes}
    problems: list[KbuildError] = []
    for owner, mention in _mentions(nodes, top):
        if mention.name not in names:
            hint = _close(mention.name, names) if len(problems) < MOST_HINTS else ""
            problems.append(_error(mention, f"there is no node {mention.name!r}", "missing-node", hint))
        elif mention.name == owner:
            problems.append(_error(mention, "a node cannot need itself", "self-reference", ""))
        elif mention.info.accepts and mention.name in found:
            problems += _produces(mention, found[mention.name])
    return problems


def cycles(nodes: Sequence[Node]) -> list[KbuildError]:
    """Each group of nodes that need each other, as one path that closes."""
    edges = {node.name: _edges(node.declaration) for node in nodes}
    by_name = {node.name: node for node in nodes}
    return [_cycle(path, by_name) for path in _closed_paths(edges)]


def sources(nodes: Sequence[Node], root: Path) -> list[KbuildError]:
    """Sources that do not exist or lie outside of the workspace."""
    inside = _Inside(root)
    problems: list[KbuildError] = []
    for node in nodes:
        for mention in node.typed.paths:
            if complaint := mention.name and inside.complaint(mention.name):
                problems.append(_error(mention, *complaint))
    return problems


def of_kinds(nodes: Sequence[Node]) -> list[KbuildError]:
    """What the kinds themselves have to say, seeing all declarations, when everything else is right.

    A kind's method `check(name, declaration, declarations)`, if it has one, gives (field, message, hint) for each.
    """
    declarations = {node.name: node.declaration for node in nodes}
    problems: list[KbuildError] = []
    for node in nodes:
        check = getattr(node.kind, "check", None)
        for field, message, hint in check(node.name, node.declaration, declarations) if check else ():
            at = _place(node, field)
            label = f"{node.name}: {field}" if field else node.name
            told = f"{label}: {message}"
            problems.append(InputError(told, reason="kind-check", hint=hint, origin=at.origin))
    return problems


class _Inside:
    """Whether paths lie in a folder, links followed; parents are looked at once."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.parents: dict[str, str] = {"": self.root}

    def complaint(self, path: str) -> tuple[str, str, str] | None:
        """(message, reason, hint) for a path that is no source."""
        if _CONTROL.search(path):
            return f"{path!r} holds control characters", "bad-path", ""
        if path.startswith("/"):
            return f"{path!r} is absolute", "source-outside", "name it relative to the workspace"
        if ".." in path.split("/"):
            return f"{path!r} climbs with '..'", "source-outside", "name it relative to the workspace"
        return self._looked_up(posixpath.normpath(path), path)

    def _looked_up(self, clean: str, path: str) -> tuple[str, str, str] | None:
        folder, name = posixpath.split("" if clean == "." else clean)
        try:
            real = os.path.join(self._parent(folder), name)  # noqa: PTH118 - strings: 10,000 of them
            if os.path.islink(real):  # noqa: PTH114
                real = os.path.realpath(real)
            if not os.path.lexists(real):
                return f"{path!r} does not exist", "missing-source", f"looked in {self.root}"
        except OSError as error:
            return f"{path!r}: {error.strerror}", "missing-source", ""
        if not f"{real}/".startswith(f"{self.root.rstrip('/')}/"):
            return f"{path!r} leads out of the workspace", "source-outside", "a link on its way leads there"
        return None

    def _parent(self, folder: str) -> str:
        if folder not in self.parents:
            self.parents[folder] = os.path.realpath(f"{self.root}/{folder}")
        return self.parents[folder]


def _mentions(nodes: Sequence[Node], top: Sequence[Mention]) -> Iterator[tuple[str, Mention]]:
    for node in nodes:
        for mention in node.typed.nodes:
            if mention.name:
                yield node.name, mention
    for mention in top:
        yield "", mention


def _produces(mention: Mention, node: Node) -> list[KbuildError]:
    if node.kind.produces in mention.info.accepts:
        return []
    wanted = " or ".join(mention.info.accepts)
    message = f"{mention.name!r} ({node.declaration.kind}) produces a {node.kind.produces}"
    return [_error(mention, message, "wrong-product", f"needed here: {wanted}")]


def _edges(declaration: Declaration) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in declaration.refs.values() for name in names))


def _closed_paths(edges: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Cycles of more than one node, each with a node that no other has; the first few."""
    state: dict[str, int] = {}  # 1 on the path, 2 done
    told: set[str] = set()
    found: list[tuple[str, ...]] = []
    for start in edges:
        if start not in state and len(found) < MOST_CYCLES:
            for cycle in _search(start, edges, state):
                if told.isdisjoint((cycle[0], cycle[-1])) and len(found) < MOST_CYCLES:
                    found.append(tuple(cycle))
                    told.update(cycle)
    return found


def _search(start: str, edges: Mapping[str, Sequence[str]], state: dict[str, int]) -> Iterator[Sequence[str]]:
    """The cycles that a depth-first search from here meets, without recursion."""
    path, waiting = [start], [iter(edges[start])]
    closed: set[str] = set()
    state[start] = 1
    while path:
        name = next(waiting[-1], None)
        if name is None:
            state[path.pop()] = 2
            waiting.pop()
        elif state.get(name) == 1 and name != path[-1] and name not in closed:
            closed.add(name)
            yield path[path.index(name) :]
        elif name in edges and name not in state:
            state[name] = 1
            path.append(name)
            waiting.append(iter(edges[name]))


def _cycle(path: tuple[str, ...], nodes: Mapping[str, Node]) -> KbuildError:
    first = path.index(min(path))
    turned = [*path[first:], *path[:first]]
    second = turned[1].partition("@")[0]  # without its cell, as it is written
    at = next(mention.at for mention in nodes[turned[0]].typed.nodes if mention.name == second)
    message = f"nodes need each other: {' → '.join([*turned, turned[0]])}"
    return InputError(message, reason="cycle", hint="one of them has to do without", origin=at.origin)


def _place(node: Node, field: str) -> Located:
    """Where a field stands, by its dotted path; the nearest that is written above it if it does not."""
    at: Located = node.typed.places.get(field.split(".", maxsplit=1)[0], node.key)
    for part in field.split(".")[1:]:
        if isinstance(at, Items) and part.isdecimal() and int(part) < len(at.items):
            at = at.items[int(part)]
        elif isinstance(at, Fields) and part in at.fields:
            at = at.fields[part]
    return at


def _close(word: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(sorted(names)) if 0 < len(names) <= MOST_LISTED else ""


def _error(mention: Mention, message: str, reason: str, hint: str) -> KbuildError:
    at: Located = mention.at
    return InputError(f"{mention.label}: {message}", reason=reason, hint=hint, origin=at.origin)
