"""`push-1g`: see `benchmarks.transfers`."""

from benchmarks.harness import Benchmark
from benchmarks.transfers import MIB, push

BENCHMARK = Benchmark(
    "push-1g", "push an image of 1 layers of 1024 MiB", lambda: push("push-1g", 1, 1024 * MIB)
)
