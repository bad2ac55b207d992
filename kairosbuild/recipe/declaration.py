"""What a recipe comes down to: declarations, plain JSON-able values that the graph is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kairosbuild.core.errors import Origin
from kairosbuild.recipe.publication import Publish


@dataclass(frozen=True, slots=True)
class Declaration:
    """One node as declared, validated and normalised.

    `spec` holds every field by value, defaults filled in and variables replaced. `refs` maps a role
    (the field's name; `field.label` for a refmap) to the nodes it names, in order. `sources` maps a
    role the same way to a workspace-relative path. `hints` and `origin` are for people and the
    scheduler; they never reach a key.
    """

    name: str
    kind: str
    spec: Mapping[str, Any]
    refs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    hints: Mapping[str, Any] = field(default_factory=dict, compare=False)
    origin: Origin | None = field(default=None, compare=False)
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What `--set` changed that this node, or one that it names, depends on."""
    platform: str = ""
    """What it runs on, as the cell of a matrix says; "" for the recipe's own platform."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe: its nodes in the order written, and what is published."""

    name: str
    file: str  # as the user named it
    root: str  # the workspace folder that sources are relative to, absolute
    vars: Mapping[str, str]
    nodes: tuple[Declaration, ...]
    publish: Publish
    epoch: int  # seconds since 1970 that every timestamp is clamped to
    platform: str  # "linux/amd64", for nodes that do not say
    files: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """Included files: absolute path, and sha256 of what was read."""
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What `--set` changed that every node depends on: by way of platform or epoch."""
    names: frozenset[str] = field(default=frozenset(), compare=False)
    """The nodes as written, those that a `when` leaves out among them, without cells."""
    settable: frozenset[str] = field(default=frozenset(), compare=False)
    """The variables that `--set` may name."""
