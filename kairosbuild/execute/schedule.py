"""Which ready node starts next: longest remaining path first, as far as cpu, memory and names reach."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Needs:
    """What a node occupies while it runs: processors, bytes of memory, named resources (one holder each)."""

    cpu: int = 1
    memory: int = 0
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, hints: Mapping[str, Any]) -> Needs:
        """Read the hints `cpu`, `memory` (bytes) and `resources` (names)."""
        names = tuple(hints.get("resources") or ())
        return cls(int(hints.get("cpu") or 1), int(hints.get("memory") or 0), names)


@dataclass
class Schedule:
    """Ready nodes and free capacity. Used by one thread."""

    cpu: int
    memory: int
    _ready: list[tuple[float, int, Needs]] = field(default_factory=list)
    _running: dict[int, Needs] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._free_cpu, self._free_memory = self.cpu, self.memory

    @property
    def running(self) -> int:
        """How many have started and not ended."""
        return len(self._running)

    def add(self, node: int, priority: float, needs: Needs) -> None:
        """A node has become ready; of two the one with the longer remaining path starts first."""
        heapq.heappush(self._ready, (-priority, node, needs))

    def start(self) -> int | None:
        """The next node that may start now. One that asks for more than there is runs alone."""
        passed = []
        chosen = None
        while self._ready and self._free_cpu > 0:
            item = heapq.heappop(self._ready)
            if self._fits(item[2]):
                chosen = item[1]
                self._take(chosen, item[2])
                break
            passed.append(item)
        for item in passed:
            heapq.heappush(self._ready, item)
        return chosen

    def end(self, node: int) -> None:
        """A started node is over: what it held is free again."""
        needs = self._running.pop(node)
        self._free_cpu += needs.cpu
        self._free_memory += needs.memory
        self._held -= set(needs.names)

    def drop(self) -> None:
        """Start nothing more."""
        self._ready.clear()

    def _fits(self, needs: Needs) -> bool:
        if not self._running:
            return True
        return (
            needs.cpu <= self._free_cpu
            and needs.memory <= self._free_memory
            and self._held.isdisjoint(needs.names)
        )

    def _take(self, node: int, needs: Needs) -> None:
        self._running[node] = needs
        self._free_cpu -= needs.cpu
        self._free_memory -= needs.memory
        self._held |= set(needs.names)
