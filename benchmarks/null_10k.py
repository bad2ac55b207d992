"""Nothing changed among ten thousand nodes, the whole process."""

from __future__ import annotations

from benchmarks.grid import grid
from benchmarks.harness import Benchmark, Result, median_seconds

WIDTH = 1000


def run() -> Result:
    """Both have built everything before."""
    with grid(WIDTH) as made:
        made.kbuild()
        made.doit()
        made.check()
        made.kbuild()
        ours = median_seconds(made.kbuild, runs=7)
        peer = median_seconds(made.doit, runs=5)
        said = made.kbuild()
        assert said["built"] == 0 and said["unchanged"] == 10 * WIDTH + 1, said
    return Result("null-10k", "s", ours, peer, "doit", 0.5)


BENCHMARK = Benchmark("null-10k", "nothing changed, 10,000 nodes, whole process", run)
