"""What a recipe comes down to: declarations, plain JSON-able values that the graph is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kairosbuild.core.errors import Origin


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


class PublishedCell(NamedTuple):
    """A published node in one cell of a matrix."""

    node: str  # its name in the recipe
    suffix: str  # what its tags end in
    subject: str  # the published image that it is made of, "" for none
    requires: tuple[str, ...]  # what must have passed, of the cells that agree with this one


@dataclass(frozen=True, slots=True)
class Publish:
    """What goes where once it is built, and what must have passed before."""

    targets: tuple[str, ...] = ()
    to: str = ""  # a reference, or `oci:DIR` for a layout; "" is the default one
    tags: tuple[str, ...] = ("latest",)
    requires: tuple[str, ...] = ()
    origin: Origin | None = field(default=None, compare=False)
    cells: Mapping[str, PublishedCell] = field(default_factory=dict)  # by target; empty without a matrix
    sbom: tuple[str, ...] = ("spdx",)
    provenance: bool = True
    sign: str = ""

    def gates(self, targets: Iterable[str]) -> tuple[str, ...]:
        """What must have passed before these targets are published, each once."""
        if not self.cells:
            return self.requires
        return tuple(dict.fromkeys(gate for target in targets for gate in self.cells[target].requires))


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
