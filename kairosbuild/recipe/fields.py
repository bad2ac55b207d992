"""Typed fields: one description of a field that drives parser, schema, reference and key.

A kind's spec is a frozen dataclass whose fields are made by the constructors below:

    @dataclass(frozen=True, slots=True)
    class PackagesSpec:
        on: str = ref("The node whose stack is installed onto.", accepts=("layer",))
        install: tuple[str, ...] = texts("Package names.", least=1)
        recommends: bool = flag("Install recommended packages too.")

What a field *is* decides what it does to the key: a `ref` contributes the output digests of the
node it names, a `source` the digests of the files it names, a `hint` nothing, the rest their value.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

FieldType = Literal[
    "text",  # str
    "integer",  # int
    "flag",  # bool
    "choice",  # str out of `choices`
    "digest",  # "sha256:<64 hex>"
    "mode",  # file mode, octal text as "0644"
    "size",  # bytes as int; written "512M", "2G" or a number
    "duration",  # seconds as int; written 90, "90s", "10m" or "2h"
    "ref",  # name of a node            → str
    "refs",  # list of node names        → tuple[str, ...]
    "refmap",  # {label: node name}        → Mapping[str, str]
    "source",  # path in the workspace, a file or a folder → str
    "sourcemap",  # {label: path}             → Mapping[str, str]
    "texts",  # list of str               → tuple[str, ...]
    "textmap",  # {str: str}                → Mapping[str, str]
    "record",  # one nested spec dataclass
    "records",  # list of nested spec dataclasses → tuple[...]
    "recordmap",  # {str: nested spec dataclass}
]

REQUIRED: Any = dataclasses.MISSING


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """Everything known of one field. `check` returns a complaint or "" for a normalised value."""

    type: FieldType
    doc: str
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()  # for refs: what the named node must produce ("layer", "image", "file", …)
    least: int = 0  # fewest items, or the smallest integer
    most: int | None = None  # largest integer
    pattern: str = ""  # a regular expression the whole text must match
    record: builtins.type | None = None  # for record, records, recordmap
    hint: bool = False  # timing and resources: beside the spec, never in a key
    names: bool = False  # for refs: the nodes' names themselves matter to the output
    by: tuple[str, ...] = ()  # for refs: only these outputs of the named nodes stand in the key
    check: Callable[[Any], str] | None = None
    example: str = ""


def field(info: FieldInfo) -> Any:
    """A dataclass field that carries its description."""
    extra: dict[str, Any] = {}
    if isinstance(info.default, Mapping | list):
        extra["default_factory"] = lambda: copy.copy(info.default)
    elif info.default is not REQUIRED:
        extra["default"] = info.default
    return dataclasses.field(metadata={"kbuild": info}, kw_only=True, **extra)


def text(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """Text; numbers and booleans of YAML arrive as they were written (6.10 stays `6.10`)."""
    return field(FieldInfo("text", doc, default, **more))


def integer(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A whole number."""
    return field(FieldInfo("integer", doc, default, **more))


def flag(doc: str, default: bool = False, **more: Any) -> Any:
    """`true` or `false`."""
    return field(FieldInfo("flag", doc, default, **more))


def choice(doc: str, choices: tuple[str, ...], default: Any = REQUIRED, **more: Any) -> Any:
    """One word of a closed set."""
    return field(FieldInfo("choice", doc, default, choices=choices, **more))


def digest(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A sha256 digest; written with or without its `sha256:`."""
    return field(FieldInfo("digest", doc, default, **more))


def mode(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A file mode in octal, as text."""
    return field(FieldInfo("mode", doc, default, **more))


def size(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A number of bytes; K, M, G and T are powers of 1024."""
    return field(FieldInfo("size", doc, default, **more))


def duration(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A time in seconds; s, m and h are units."""
    return field(FieldInfo("duration", doc, default, **more))


def ref(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """An edge: the name of another node."""
    return field(FieldInfo("ref", doc, default, **more))


def refs(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """Edges in order: names of other nodes."""
    return field(FieldInfo("refs", doc, default, **more))


def refmap(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """Edges by label."""
    return field(FieldInfo("refmap", doc, default, **more))


def source(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A file or folder of the workspace."""
    return field(FieldInfo("source", doc, default, **more))


def sourcemap(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """Files or folders of the workspace by label."""
    return field(FieldInfo("sourcemap", doc, default, **more))


def texts(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A list of text."""
    return field(FieldInfo("texts", doc, default, **more))


def textmap(doc: str, default: Any = REQUIRED, **more: Any) -> Any:
    """A mapping of text to text."""
    return field(FieldInfo("textmap", doc, default, **more))


def record(doc: str, of: type, default: Any = REQUIRED, **more: Any) -> Any:
    """A nested mapping with typed fields of its own."""
    return field(FieldInfo("record", doc, default, record=of, **more))


def records(doc: str, of: type, default: Any = REQUIRED, **more: Any) -> Any:
    """A list of nested mappings."""
    return field(FieldInfo("records", doc, default, record=of, **more))


def recordmap(doc: str, of: type, default: Any = REQUIRED, **more: Any) -> Any:
    """Nested mappings by label."""
    return field(FieldInfo("recordmap", doc, default, record=of, **more))


@cache
def infos(spec: type) -> Mapping[str, FieldInfo]:
    """The described fields of a spec class, in the order they were written, by attribute name."""
    return MappingProxyType({f.name: f.metadata["kbuild"] for f in dataclasses.fields(spec)})


def written(attribute: str) -> str:
    """How a recipe writes the name of this attribute: `from_` is `from`, which Python keeps for itself."""
    return attribute.rstrip("_")
