"""Spec instances and the JSON values that declarations are made of, in both directions.

A declaration holds a spec in three parts, because they reach a key in three ways: values by value,
references by what the named nodes yield, sources by what their files hold. `names=True` puts a
reference's name among the values too. Nothing here needs YAML, so a cached recipe loads without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import REQUIRED, FieldInfo, infos

SpecT = TypeVar("SpecT")

REF_TYPES = frozenset(("ref", "refs", "refmap"))
SOURCE_TYPES = frozenset(("source", "sourcemap"))


class Parts(NamedTuple):
    """What of a declaration is kept by role: field names, dotted below the top (`files.0.source`)."""

    refs: Mapping[str, tuple[str, ...]] = {}
    sources: Mapping[str, str] = {}
    hints: Mapping[str, Any] = {}


def typed_spec(spec: type[SpecT], declaration: Declaration) -> SpecT:
    """The spec instance of a declaration, as its kind's code sees it."""
    parts = Parts(declaration.refs, declaration.sources, declaration.hints)
    return _build(spec, declaration.spec, parts, "")


def from_json(
    spec: type[SpecT],
    values: Mapping[str, Any],
    refs: Mapping[str, tuple[str, ...]] | None = None,
    sources: Mapping[str, str] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> SpecT:
    """The spec instance that these normalised values, references, sources and hints describe."""
    return _build(spec, values, Parts(refs or {}, sources or {}, hints or {}), "")


def to_json(value: Any) -> Any:
    """A value of a spec as JSON has it; of a spec instance, what stands by value in a declaration."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = infos(type(value))
        return {name: to_json(getattr(value, name)) for name, info in known.items() if by_value(info)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def by_value(info: FieldInfo) -> bool:
    """Whether this field stands in a declaration's `spec`."""
    return not info.hint and (info.names or (info.type not in REF_TYPES and info.type not in SOURCE_TYPES))


def info_of(spec: type, role: str) -> FieldInfo:
    """The description of the field that a role (`field`, `records.0.field`, `refmap.label`) belongs to."""
    parts = role.split(".")
    info: FieldInfo = infos(spec)[parts.pop(0)]
    while info.record is not None and parts:
        if info.type != "record":
            parts.pop(0)  # the number or label of the record
        info = infos(info.record)[parts.pop(0)]
    return info


def revive(info: FieldInfo, value: Any, role: str, parts: Parts) -> Any:
    """A JSON value as the spec instance has it: tuples for lists, instances for records."""
    if value is None or value is REQUIRED:
        return value
    if info.type in ("texts", "refs"):
        return tuple(value)
    if info.record is not None:
        return _records(info.type, info.record, value, role, parts)
    return value


def _build(spec: type[SpecT], values: Mapping[str, Any], parts: Parts, prefix: str) -> SpecT:
    known: Mapping[str, FieldInfo] = infos(spec)  # type: ignore[arg-type]
    found = {
        name: _field(info, values.get(name, REQUIRED), prefix + name, parts) for name, info in known.items()
    }
    return spec(**{name: value for name, value in found.items() if value is not REQUIRED})


def _field(info: FieldInfo, value: Any, role: str, parts: Parts) -> Any:
    """One field's value for the spec instance; REQUIRED where the class's own default shall stand."""
    if info.type in REF_TYPES:
        return _refs(info, role, parts.refs)
    if info.type in SOURCE_TYPES:
        return _sources(info, role, parts.sources)
    return revive(info, parts.hints.get(role, REQUIRED) if info.hint else value, role, parts)


def _refs(info: FieldInfo, role: str, refs: Mapping[str, tuple[str, ...]]) -> Any:
    if info.type == "refs":
        return refs.get(role, REQUIRED)
    if info.type == "ref":
        return refs[role][0] if refs.get(role) else REQUIRED
    return _labelled(info, role, refs, lambda names: names[0])


def _sources(info: FieldInfo, role: str, sources: Mapping[str, str]) -> Any:
    if info.type == "source":
        return sources.get(role, REQUIRED)
    return _labelled(info, role, sources, str)


def _labelled(info: FieldInfo, role: str, parts: Mapping[str, Any], of: Callable[[Any], str]) -> Any:
    start = role + "."
    found = {key[len(start) :]: of(value) for key, value in parts.items() if key.startswith(start)}
    return found if found or info.default is REQUIRED else REQUIRED


def _records(type_: str, record: type, value: Any, role: str, parts: Parts) -> Any:
    if type_ == "record":
        return _build(record, value, parts, f"{role}.")
    if type_ == "records":
        return tuple(_build(record, item, parts, f"{role}.{index}.") for index, item in enumerate(value))
    return {label: _build(record, item, parts, f"{role}.{label}.") for label, item in value.items()}
