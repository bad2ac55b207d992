"""`push-200`: see `benchmarks.transfers`."""

from benchmarks.harness import Benchmark
from benchmarks.transfers import MIB, push

BENCHMARK = Benchmark(
    "push-200", "push an image of 200 layers of 1 MiB", lambda: push("push-200", 200, 1 * MIB)
)
