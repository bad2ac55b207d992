"""`pull-200`: see `benchmarks.transfers`."""

from benchmarks.harness import Benchmark
from benchmarks.transfers import MIB, pull

BENCHMARK = Benchmark(
    "pull-200", "pull an image of 200 layers of 1 MiB", lambda: pull("pull-200", 200, 1 * MIB)
)
