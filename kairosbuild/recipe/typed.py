"""Located mappings held against spec classes: normalised values, and every problem with its place.

What a person wrote becomes JSON-able values, with references and sources set apart (see
`recipe.instances`, which has the way back). A problem is noted and reading goes on, so that one
look shows all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from kairosbuild.core.errors import InputError, KbuildError, nearest
from kairosbuild.recipe import scalars
from kairosbuild.recipe.fields import REQUIRED, FieldInfo, infos, written
from kairosbuild.recipe.instances import REF_TYPES, SOURCE_TYPES, Parts, by_value, revive, to_json
from kairosbuild.recipe.located import Fields, Items, Located, Text, describe
from kairosbuild.recipe.variables import MOST_HINTS, Broken, Variables

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Mention:
    """A node or a path as it is named somewhere: for the checks that need the whole recipe."""

    info: FieldInfo
    label: str  # the field it stands in, for messages
    name: str
    at: Located


@dataclass(slots=True)
class Typed:
    """What one mapping came to. Roles are field names, dotted below the top (`files.0.source`)."""

    spec: dict[str, Any] = dataclasses.field(default_factory=dict)
    refs: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    hints: dict[str, Any] = dataclasses.field(default_factory=dict)
    nodes: list[Mention] = dataclasses.field(default_factory=list)
    paths: list[Mention] = dataclasses.field(default_factory=list)
    places: dict[str, Located] = dataclasses.field(default_factory=dict)  # by role

    def parts(self) -> Parts:
        """What is kept by role."""
        return Parts(self.refs, self.sources, self.hints)


class _Bad:
    """Stands for a value whose problem has been noted."""


BAD: Any = _Bad()


class _Spot(NamedTuple):
    """Where a value is read and what its findings go to; its names are only made when they are needed."""

    typed: Typed
    name: str  # as written, for messages
    field: str  # as the spec class has it, for roles
    parent: _Spot | None = None
    key: str | int | None = None

    def at(self, key: str | int) -> _Spot:
        """The spot of an item or entry."""
        return _Spot(self.typed, "", "", self, key)

    @property
    def label(self) -> str:
        """The value's name in messages."""
        if self.parent is None:
            return self.name
        key = f"[{self.key}]" if isinstance(self.key, int) else f".{self.key}"
        return self.parent.label + key

    @property
    def role(self) -> str:
        """The value's role in a declaration."""
        return self.field if self.parent is None else f"{self.parent.role}.{self.key}"


class Reader:
    """Reads mappings with one set of variables and one list of problems."""

    def __init__(self, variables: Variables, problems: list[KbuildError]) -> None:
        self.variables = variables
        self.problems = problems

    def fields(self, spec: type, node: Located, what: str, *, also: frozenset[str] = NONE) -> Typed:
        """Read this mapping as this spec. `what` names it in messages; `also` are keys the caller reads."""
        typed = Typed()
        if isinstance(node, Fields):
            typed.spec = self._mapping(spec, node, _Spot(typed, what, ""), also)
        else:
            self._complain(what, _expected("a mapping", node))
        return typed

    def common(self, spec: type, node: Fields, typed: Typed, *, but: Mapping[str, Any]) -> None:
        """Read the fields of a second spec, all hints, that stand in the same mapping, `but` some."""
        for name, label, info, _, _ in _plan(spec):
            found = node.fields.get(label)
            if found is not None and name not in but:
                value = self._value(info, found, _Spot(typed, label, name))
                typed.places[name] = found
                if value is not BAD:
                    typed.hints[name] = value

    def _mapping(self, spec: type, node: Fields, spot: _Spot, also: frozenset[str] = NONE) -> dict[str, Any]:
        plan, seen = _plan(spec), 0
        values: dict[str, Any] = {}
        typed, above = spot.typed, spot.role
        prefix = f"{above}." if above else ""
        for name, label, info, default, valued in plan:
            role = prefix + name
            found = node.fields.get(label)
            if found is not None:
                seen += 1
                typed.places[role] = found
                value = self._value(info, found, _Spot(typed, label, role))
            elif default is REQUIRED:
                self._note(f"{spot.label}: the field {label!r} is missing", "missing-field", node, info.doc)
                continue
            else:
                value = default
            if value is not BAD:
                if valued:
                    values[name] = value
                if not valued or info.names:
                    _place(info, role, value, typed)
        if seen < len(node.fields):
            self._unknown(node, spot.label, {label for _, label, _, _, _ in plan}, also)
        return values

    def _unknown(self, node: Fields, what: str, labels: set[str], also: frozenset[str]) -> None:
        for name, key in node.keys.items():
            if name not in labels and name not in also:
                hint = nearest(name, labels | also) if len(self.problems) < MOST_HINTS else ""
                self._note(f"{what}: there is no field {name!r}", "unknown-field", key, hint)

    def _value(self, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        try:
            value = _READ[info.type](self, info, node, spot)
            if info.check is not None and value is not BAD:
                _ask(info, value, node, spot)
        except InputError as error:
            self._complain(spot.label, error)
            return BAD
        return value

    def _scalar(self, info: FieldInfo, node: Located, _: _Spot) -> Any:
        return scalars.READ[info.type](info, self._word(node), node)

    def _word(self, node: Located) -> scalars.Word:
        if not isinstance(node, Text):
            raise _expected("one value", node)
        if "$" in node.value:
            return scalars.Word(self.variables.expand(node), True)
        if node.null:
            raise _expected("a value", node, 'write "" for empty text')
        return scalars.Word(node.value, node.plain)

    def _item(self, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        """One text of a list or a mapping."""
        try:
            return scalars.item(info, self._word(node), node)
        except InputError as error:
            self._complain(spot.label, error)
            return BAD

    def _name(self, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        """One node name or path, remembered for the checks on the whole recipe."""
        name = self._item(info, node, spot)
        if name is not BAD:
            found = spot.typed.nodes if info.type in REF_TYPES else spot.typed.paths
            found.append(Mention(info, spot.label, name, node))
        return name

    def _record(self, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        assert info.record is not None
        if not isinstance(node, Fields):
            self._complain(spot.label, _expected("a mapping", node))
            return BAD
        before = len(self.problems)
        values = self._mapping(info.record, node, spot)
        return values if len(self.problems) == before else BAD

    def _complain(self, label: str, error: KbuildError) -> None:
        if isinstance(error, Broken):
            return  # noted where the variable is declared
        message = f"{label}: {error.message}"
        self.problems.append(InputError(message, reason=error.reason, hint=error.hint, origin=error.origin))

    def _note(self, message: str, reason: str, at: Located, hint: str) -> None:
        self.problems.append(InputError(message, reason=reason, hint=hint, origin=at.origin))


_One = Callable[[Reader, FieldInfo, Located, _Spot], Any]


def _list_of(one: _One) -> _One:
    def read(reader: Reader, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        found = [one(reader, info, item, spot.at(key)) for key, item in enumerate(_items(info, node))]
        return BAD if BAD in found else found

    return read


def _map_of(one: _One) -> _One:
    def read(reader: Reader, info: FieldInfo, node: Located, spot: _Spot) -> Any:
        found = {key: one(reader, info, item, spot.at(key)) for key, item in _entries(info, node)}
        return BAD if BAD in found.values() else found

    return read


_READ: dict[str, _One] = {
    **dict.fromkeys(scalars.READ, Reader._scalar),
    "ref": Reader._name,
    "refs": _list_of(Reader._name),
    "refmap": _map_of(Reader._name),
    "source": Reader._name,
    "sourcemap": _map_of(Reader._name),
    "texts": _list_of(Reader._item),
    "textmap": _map_of(Reader._item),
    "record": Reader._record,
    "records": _list_of(Reader._record),
    "recordmap": _map_of(Reader._record),
}

_Plan = tuple[tuple[str, str, FieldInfo, Any, bool], ...]


@cache
def _plan(spec: type) -> _Plan:
    """(attribute, name as written, description, default as JSON, stands by value) of each field."""
    return tuple(
        (name, written(name), info, _default(info), by_value(info)) for name, info in infos(spec).items()
    )


def _default(info: FieldInfo) -> Any:
    return info.default if info.default is REQUIRED else to_json(info.default)


def _place(info: FieldInfo, role: str, value: Any, typed: Typed) -> None:
    """Put a reference, a source or a hint with its like."""
    if info.type in REF_TYPES:
        typed.refs.update(_by_role(info, role, value))
    elif info.type in SOURCE_TYPES:
        if isinstance(value, Mapping):
            typed.sources.update({f"{role}.{label}": path for label, path in value.items()})
        elif value:
            typed.sources[role] = value
    elif info.hint:
        typed.hints[role] = value


def _by_role(info: FieldInfo, role: str, value: Any) -> dict[str, tuple[str, ...]]:
    if info.type == "refmap":
        return {f"{role}.{label}": (name,) for label, name in (value or {}).items()}
    if info.type == "refs":
        return {role: tuple(value or ())}
    return {role: (value,) if value else ()}


def _ask(info: FieldInfo, value: Any, node: Located, spot: _Spot) -> None:
    """Put the value to the field's own check, as the kind will see it."""
    assert info.check is not None
    if complaint := info.check(revive(info, value, spot.role, spot.typed.parts())):
        raise InputError(complaint, reason="bad-value", origin=node.origin)


def _items(info: FieldInfo, node: Located) -> list[Located]:
    if not isinstance(node, Items):
        hint = f"write [{node.value}]" if isinstance(node, Text) and not node.null else ""
        raise _expected("a list", node, hint)
    _count(info, len(node.items), node)
    return node.items


def _entries(info: FieldInfo, node: Located) -> Iterator[tuple[str, Located]]:
    if not isinstance(node, Fields):
        raise _expected("a mapping", node)
    _count(info, len(node.fields), node)
    return iter(node.fields.items())


def _count(info: FieldInfo, number: int, node: Located) -> None:
    if number < info.least:
        raise InputError(f"{number} given, {info.least} needed", reason="too-few", origin=node.origin)
    if info.most is not None and number > info.most:
        raise InputError(f"{number} given, {info.most} allowed", reason="too-many", origin=node.origin)


def _expected(what: str, node: Located, hint: str = "") -> InputError:
    message = f"{what} is expected, not {describe(node)}"
    return InputError(message, reason="wrong-type", hint=hint, origin=node.origin)
