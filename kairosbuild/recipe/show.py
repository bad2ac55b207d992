"""A recipe as it was understood: every value, and where it came from.

A value stands at a place of some file, or is a default; what it used of variables came from `--set`, from an
axis of the matrix, or from a place too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kairosbuild.core.errors import Origin
from kairosbuild.recipe.cells import Raw, key_of
from kairosbuild.recipe.fields import infos, written
from kairosbuild.recipe.instances import REF_TYPES, SOURCE_TYPES, to_json
from kairosbuild.recipe.language import NodeHints, RecipeSpec
from kairosbuild.recipe.load import Loading
from kairosbuild.recipe.located import Located
from kairosbuild.recipe.matrix import Cell, restricted, suffixed
from kairosbuild.recipe.typed import Typed
from kairosbuild.recipe.variables import names_in

SET = "--set"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Value:
    """One value by the path of its field. `at` is None for a default; `by` says where each variable came from."""

    path: str
    value: Any
    at: Origin | None = None
    by: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where it came from, in words."""
        place = [str(self.at)] if self.at else [] if self.by else [DEFAULT]
        return ", ".join([*place, *(f"{name}: {where}" for name, where in self.by.items())])


@dataclass(frozen=True, slots=True)
class ShownNode:
    """One node, in one cell. `absent` says where the `when` is that leaves it out."""

    name: str
    kind: str
    at: Origin
    fields: tuple[Value, ...] = ()
    absent: Origin | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A whole recipe."""

    top: tuple[Value, ...]
    variables: tuple[Value, ...]
    nodes: tuple[ShownNode, ...]


def shown(loading: Loading) -> Shown:
    """What a recipe came to. Its problems have been raised before."""
    top = _Fields(loading, {})
    return Shown(
        tuple(top.of(RecipeSpec, loading.top)),
        tuple(_variables(loading)),
        tuple(node for raw in loading.raws for node in _nodes(loading, raw)),
    )


def _variables(loading: Loading) -> Iterator[Value]:
    for name, value in loading.values.items():
        if name in loading.given:
            yield Value(name, value, None, {name: SET})
        else:
            at = loading.known[name]
            yield Value(name, value, at.origin, _Fields(loading, {}).by(at))
    for axis in loading.matrix.axes:
        values = list(dict.fromkeys(cell[axis.name] for cell in loading.matrix.cells))
        yield Value(axis.name, values, axis.key.origin)


def _nodes(loading: Loading, raw: Raw) -> Iterator[ShownNode]:
    cells = loading.expansion.cells[raw.name]
    if not cells:
        yield ShownNode(raw.name, raw.kind, raw.key.origin, absent=loading.when_of(raw.name).origin)
    for cell in cells:
        typed = raw.of(cell)
        assert typed is not None
        name = suffixed(raw.name, cell)
        resolved = loading.final[name]
        known = _Fields(loading, restricted(cell, raw.axes), resolved.declaration.refs)
        fields = [*known.of(loading.kinds[raw.kind].Spec, typed), *known.hints(typed)]
        yield ShownNode(name, raw.kind, raw.key.origin, tuple(fields))


class _Fields:
    """Fields of one mapping, read in one cell."""

    def __init__(
        self, loading: Loading, cell: Cell, refs: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._loading, self._cell, self._refs = loading, cell, refs
        self._reader = loading.readers[key_of(cell)]

    def of(self, spec: type, typed: Typed) -> Iterator[Value]:
        """Every field that is not a hint."""
        yield from self._record(spec, typed.spec, typed, "", "")

    def hints(self, typed: Typed) -> Iterator[Value]:
        """The hints that are said."""
        for name, value in typed.hints.items():
            at = typed.places.get(name)
            if value != to_json(infos(NodeHints)[name].default if name in infos(NodeHints) else None):
                yield self._value(name, value, at)

    def by(self, at: Located) -> dict[str, str]:
        """Where each variable behind a text came from."""
        found = {}
        for name in sorted(self._loading.dependence.variables(names_in(at))):
            if name in self._loading.given:
                found[name] = SET
            elif name in self._cell:
                found[name] = f"matrix {self._cell[name]}"
            elif declared := self._reader.variables.declared(name):
                found[name] = str(declared.origin)
        return found

    def _record(
        self, spec: type, values: Mapping[str, Any], typed: Typed, role: str, path: str
    ) -> Iterator[Value]:
        for name, info in infos(spec).items():
            here, shown_path = f"{role}{name}", f"{path}{written(name)}"
            if info.hint:
                continue
            value = self._worth(info.type, here, values.get(name), typed)
            if info.record is None or not value:
                yield self._value(shown_path, value, typed.places.get(here))
            else:
                for key, each in _records(info.type, value):
                    yield from self._record(info.record, each, typed, f"{here}{key}.", f"{shown_path}{key}.")

    def _worth(self, kind: str, role: str, value: Any, typed: Typed) -> Any:
        """The value of a field, names of nodes as they are in this cell."""
        refs = typed.refs if self._refs is None else self._refs
        if kind == "refs":
            return list(refs.get(role, ()))
        if kind == "ref":
            return (refs.get(role) or ("",))[0]
        if kind in SOURCE_TYPES and kind == "source":
            return typed.sources.get(role, "")
        if kind in REF_TYPES or kind in SOURCE_TYPES:
            parts: Mapping[str, Any] = refs if kind in REF_TYPES else typed.sources
            found = {key[len(role) + 1 :]: each for key, each in parts.items() if key.startswith(f"{role}.")}
            return {key: each[0] if kind in REF_TYPES else each for key, each in found.items()}
        return value

    def _value(self, path: str, value: Any, at: Located | None) -> Value:
        return Value(path, value, at.origin, self.by(at)) if at is not None else Value(path, value)


def _records(kind: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if kind == "record":
        yield "", value
    elif kind == "records":
        yield from ((f".{number}", each) for number, each in enumerate(value))
    else:
        yield from ((f".{label}", each) for label, each in value.items())
