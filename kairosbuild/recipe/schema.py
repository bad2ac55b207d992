"""JSON Schema (2020-12) for editors, out of the same field descriptions that the parser reads by.

It accepts everything the parser accepts. YAML readers turn `6.10` into a number before a schema
sees it, so text may be a number here; and what holds a `$` is not judged, since a variable may
make anything of it. What only shows across nodes is the parser's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kairosbuild.recipe import scalars
from kairosbuild.recipe.compose import INCLUDE, OVERRIDE, OVERRIDES
from kairosbuild.recipe.fields import REQUIRED, FieldInfo, infos, written
from kairosbuild.recipe.instances import to_json
from kairosbuild.recipe.language import NODE_NAME, NodeHints, RecipeSpec
from kairosbuild.recipe.matrix import EXCLUDE, MATRIX, WHEN
from kairosbuild.recipe.variables import NAME
from kairosbuild.recipe.workspace import BuildFile, UserFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TEXTUAL = ["string", "number", "boolean"]
_VARIABLE = {"type": "string", "pattern": r"\$"}

Json = dict[str, Any]


def recipe_schema(kinds: Mapping[str, Any]) -> Json:
    """The schema of a recipe with these kinds."""
    names = sorted(kinds)
    top = _object(
        RecipeSpec,
        extra={
            "vars": {
                "type": "object",
                "description": "Variables, used as ${name} in values and changed with --set name=value.",
                "patternProperties": {_whole(NAME): {"type": _TEXTUAL}},
                "additionalProperties": False,
            },
            "include": {
                "type": "array",
                "items": {"type": "string"},
                "description": INCLUDE,
            },
            "matrix": _matrix(),
            "nodes": {
                "type": "object",
                "description": "The nodes by name.",
                "patternProperties": {_whole(NODE_NAME): {"$ref": "#/$defs/node"}},
                "additionalProperties": False,
            },
        },
    )
    return {
        "$schema": DIALECT,
        "title": "kairosbuild recipe",
        **top,
        "anyOf": [{"required": ["nodes"]}, {"required": ["include"]}],
        "$defs": {"node": _node(names), **{f"kind-{name}": _kind(name, kinds[name]) for name in names}},
    }


def workspace_schema() -> Json:
    """The schema of BUILD.yaml."""
    return {"$schema": DIALECT, "title": "kairosbuild workspace", **_object(BuildFile)}


def user_schema() -> Json:
    """The schema of a person's settings file."""
    return {"$schema": DIALECT, "title": "kairosbuild settings", **_object(UserFile)}


def field_schema(info: FieldInfo) -> Json:
    """The schema of one field's value."""
    notes: Json = {"description": info.doc}
    if info.default is not REQUIRED and info.default is not None:
        notes["default"] = to_json(info.default)
    if info.example:
        notes["examples"] = [info.example]
    return {**_value(info), **notes}


def _matrix() -> Json:
    value = {"type": _TEXTUAL}
    brought = {"type": "object", "additionalProperties": {"type": _TEXTUAL}}
    asked = {"type": "object", "additionalProperties": _one_or_more(value)}
    return {
        "type": "object",
        "description": MATRIX,
        "properties": {EXCLUDE: {"type": "array", "items": asked}},
        "additionalProperties": {
            "anyOf": [
                {"type": "array", "items": value, "minItems": 1},
                {"type": "object", "additionalProperties": brought, "minProperties": 1},
            ]
        },
    }


def _one_or_more(value: Json) -> Json:
    return {"anyOf": [value, {"type": "array", "items": value}]}


def _node(names: list[str]) -> Json:
    chosen: list[Json] = [
        {
            "if": {"required": ["kind"], "properties": {"kind": {"const": name}}},
            "then": {"$ref": f"#/$defs/kind-{name}"},
        }
        for name in names
    ]
    known = {
        "type": "object",
        "anyOf": [{"required": ["kind"]}, {"required": ["override"]}],
        "properties": {"kind": {"enum": names}},
    }
    return {**known, "allOf": chosen} if chosen else known


def _kind(name: str, kind: Any) -> Json:
    hints = {written(key): field_schema(info) for key, info in infos(NodeHints).items()}
    override = {"enum": list(OVERRIDES), "description": OVERRIDE}
    when = {
        "type": "object",
        "description": WHEN,
        "additionalProperties": _one_or_more({"type": _TEXTUAL}),
    }
    extra = {**hints, "kind": {"const": name}, "when": when, "override": override}
    return _object(kind.Spec, extra=extra)


def _object(spec: type, *, extra: Mapping[str, Json] | None = None) -> Json:
    own = {written(name): info for name, info in infos(spec).items()}
    return {
        "type": "object",
        "description": (spec.__doc__ or "").strip(),
        "properties": {**(extra or {}), **{name: field_schema(info) for name, info in own.items()}},
        "required": [name for name, info in own.items() if info.default is REQUIRED],
        "additionalProperties": False,
    }


def _value(info: FieldInfo) -> Json:
    if info.type in _SCALARS:
        found: Json = _SCALARS[info.type](info)
        return found
    if info.type in ("refs", "texts"):
        return _array(info, _text(info))
    if info.type in ("refmap", "sourcemap", "textmap"):
        return _map(info, _text(info))
    assert info.record is not None
    of = _object(info.record)
    return {"record": of, "records": _array(info, of), "recordmap": _map(info, of)}[info.type]


def _array(info: FieldInfo, items: Json) -> Json:
    most = {} if info.most is None else {"maxItems": info.most}
    return {"type": "array", "items": items, "minItems": info.least, **most}


def _map(info: FieldInfo, items: Json) -> Json:
    most = {} if info.most is None else {"maxProperties": info.most}
    return {"type": "object", "additionalProperties": items, "minProperties": info.least, **most}


def _text(info: FieldInfo) -> Json:
    """One text: of the field's choices or pattern, or unjudged for its `$`."""
    if info.choices:
        return {"anyOf": [{"enum": _as_yaml_reads(info.choices)}, _VARIABLE]}
    if info.pattern:
        numbers = {"type": ["number", "boolean"]}
        return {"anyOf": [{"type": "string", "pattern": _whole(info.pattern)}, numbers, _VARIABLE]}
    return {"type": _TEXTUAL}


def _sized_text(info: FieldInfo) -> Json:
    if not info.least and info.most is None:
        return _text(info)
    most = {} if info.most is None else {"maxLength": info.most}
    sized = {"minLength": info.least, **most}
    return {"anyOf": [{"allOf": [_text(info), sized]}, _VARIABLE]}


def _integer(info: FieldInfo) -> Json:
    most = {} if info.most is None else {"maximum": info.most}
    return {"anyOf": [{"type": "integer", "minimum": info.least, **most}, _VARIABLE]}


def _united(pattern: str) -> Any:
    def schema(info: FieldInfo) -> Json:
        return {"anyOf": [*_integer(info)["anyOf"], {"type": "string", "pattern": _whole(pattern)}]}

    return schema


def _formed(pattern: str) -> Any:
    def schema(info: FieldInfo) -> Json:
        return {"anyOf": [{"type": "string", "pattern": _whole(pattern)}, {"type": "number"}, _VARIABLE]}

    return schema


_SCALARS: dict[str, Any] = {
    "text": _sized_text,
    "choice": _sized_text,
    "ref": _text,
    "source": _text,
    "integer": _integer,
    "flag": lambda _: {"anyOf": [{"type": "boolean"}, _VARIABLE]},
    "digest": _formed(scalars.DIGEST),
    "mode": _formed(scalars.MODE),
    "size": _united(scalars.SIZE),
    "duration": _united(scalars.DURATION),
}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _as_yaml_reads(words: tuple[str, ...]) -> list[Any]:
    """The words, and beside `43` the number that an unquoted 43 becomes for a schema."""
    read: list[Any] = list(words)
    read += [int(word) for word in words if re.fullmatch("0|[1-9][0-9]*", word)]
    read += [float(word) for word in words if re.fullmatch(r"[0-9]+\.[0-9]+", word)]
    read += [word == "true" for word in words if word in ("true", "false")]
    return read
