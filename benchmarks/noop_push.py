"""`noop-push`: see `benchmarks.transfers`."""

from benchmarks.harness import Benchmark
from benchmarks.transfers import noop

BENCHMARK = Benchmark("noop-push", "push what is there already", lambda: noop("noop-push"))
