"""A thousand trivial nodes from nothing, each sandboxed on our side, none on the peer's."""

from __future__ import annotations

from benchmarks.grid import grid
from benchmarks.harness import Benchmark, Result, median_seconds

WIDTH = 100


def run() -> Result:
    """Empty store and empty doit database before each run; doit runs as many processes as there are CPUs."""
    with grid(WIDTH) as made:
        ours = median_seconds(made.kbuild, runs=3, prepare=made.forget)
        peer = min(
            median_seconds(made.doit, runs=3, prepare=made.forget),
            median_seconds(lambda: made.doit("-n", "2"), runs=3, prepare=made.forget),
        )
        made.kbuild()
        made.check()
    return Result(
        "cold-1k", "s", ours, peer, "doit", 1.5, "doit is not sandboxed; its better of -n 1 and -n 2"
    )


BENCHMARK = Benchmark("cold-1k", "1,000 trivial nodes from nothing, each action sandboxed", run)
