"""One source changed among ten thousand nodes: 55 of them run, the whole process."""

from __future__ import annotations

import itertools

from benchmarks.grid import CONE, grid
from benchmarks.harness import Benchmark, Result, median_seconds

WIDTH = 1000
RUNS = 5


def run() -> Result:
    """Another source gets a content that it never had, before each run of each side."""
    with grid(WIDTH) as made:
        made.kbuild()
        made.doit()
        made.kbuild()
        numbers = itertools.count()
        built: list[int] = []

        def edit() -> None:
            n = next(numbers)
            made.edit(100 * (n % (2 * WIDTH // 100)), f"edit {n}\n")

        def ours_once() -> None:
            built.append(made.kbuild()["built"])

        ours = median_seconds(ours_once, runs=RUNS, prepare=edit)
        made.doit()
        peer = median_seconds(made.doit, runs=RUNS, prepare=edit)
        assert built == [CONE] * RUNS, built
        made.kbuild()
        made.check()
    return Result("change-10k", "s", ours, peer, "doit", 0.5)


BENCHMARK = Benchmark("change-10k", "one source changed (55 nodes dirty) among 10,000, whole process", run)
