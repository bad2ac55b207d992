"""A build as proofs are made of it: its nodes with their keys, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TOOLS = "tools:"


@dataclass(frozen=True, slots=True)
class Step:
    """One node as it was built. `outputs` are digests by name, `needs` the nodes it names, tools last."""

    name: str
    kind: str
    key: str
    outputs: Mapping[str, str]
    preimage: Mapping[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def locked(self) -> Mapping[str, Any]:
        """What the lock says of it, as it stands in its key."""
        found: Mapping[str, Any] = self.preimage["locked"]["data"]
        return found


@dataclass(frozen=True, slots=True)
class SourceText:
    """The recipe, or its lock: where it is in the workspace, and its digest."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Built:
    """A whole build. `uris` says where a material's digest was fetched from, relative to a mirror."""

    recipe: str
    platform: str
    epoch: int
    variables: Mapping[str, str]
    steps: Mapping[str, Step]
    sources: tuple[SourceText, ...] = ()
    uris: Mapping[str, str] = field(default_factory=dict)

    def closure(self, names: Sequence[str]) -> tuple[Step, ...]:
        """These nodes and all they need, in build order."""
        wanted: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in wanted and name in self.steps:
                wanted.add(name)
                todo += self.steps[name].needs
        return tuple(step for name, step in self.steps.items() if name in wanted)
