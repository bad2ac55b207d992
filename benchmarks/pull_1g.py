"""`pull-1g`: see `benchmarks.transfers`."""

from benchmarks.harness import Benchmark
from benchmarks.transfers import MIB, pull

BENCHMARK = Benchmark(
    "pull-1g", "pull an image of 1 layers of 1024 MiB", lambda: pull("pull-1g", 1, 1024 * MIB)
)
