"""Debian minimal locked anew, the whole process: base, packages, kernel, and the tools trees, metadata in the store."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.disk import Ours
from benchmarks.harness import Benchmark, Result, median_seconds

LIMIT = 3.0


def run() -> Result:
    """Every entry is resolved again: signatures verified, apt run; what the indexes list is there already."""
    ours = Ours()
    command = [sys.executable, "-m", "kairosbuild", "lock", str(ours.recipe), "--update", "--progress=none"]
    command += [f"--cache-dir={ours.home / 'cache'}"]

    def lock() -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=ours.home)

    lock()
    return Result(
        "lock-debian", "s", median_seconds(lock), LIMIT, "limit", 1.0, "asks the mirror for InRelease"
    )


BENCHMARK = Benchmark("lock-debian", "Debian minimal resolved anew with warm metadata, whole process", run)
