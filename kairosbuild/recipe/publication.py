"""What a recipe says of publishing. A build in which nothing changed reads this, and no declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kairosbuild.core.errors import Origin


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
