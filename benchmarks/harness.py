"""What a benchmark is: a name, a goal, and a function that measures both sides of the same work."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """Both figures in one unit (seconds or MB); `ratio` is ours divided by the peer's, less is better."""

    name: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    goal: float  # the ratio to reach
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer

    @property
    def reached(self) -> bool:
        """Whether the goal holds."""
        return self.ratio <= self.goal

    def json(self) -> str:
        """One line for programs."""
        return json.dumps(
            {
                "name": self.name,
                "unit": self.unit,
                "ours": round(self.ours, 4),
                "peer": round(self.peer, 4),
                "peer_name": self.peer_name,
                "ratio": round(self.ratio, 4),
                "goal": self.goal,
                "reached": self.reached,
                "note": self.note,
            }
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`run` measures; it raises AssertionError when the two sides did not do the same work."""

    name: str
    doc: str
    run: Callable[[], Result]


def median_seconds(
    work: Callable[[], object], *, runs: int = 5, prepare: Callable[[], object] | None = None
) -> float:
    """The median wall time of `work`, with `prepare` called untimed before each run."""
    times = []
    for _ in range(runs):
        if prepare:
            prepare()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
