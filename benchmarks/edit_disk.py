"""One overlay file changed → a new bootable disk, the whole process, against mkosi's incremental build."""

from __future__ import annotations

import statistics
import uuid

from benchmarks.disk import Ours, peer, timed
from benchmarks.harness import Benchmark, Result

GOAL = 1 / 20
RUNS = 5


def run() -> Result:
    """Both have built before; each run writes another line into the same file of the overlay."""
    ours, theirs = Ours(), peer()
    ours.build()
    theirs.build()
    ours_times, digests = [], set()
    for _ in range(RUNS):
        ours.motd.write_text(f"{uuid.uuid4()}\n")
        seconds, report = timed(ours.build)
        assert report["built"] >= 3, report  # site, os, disk
        digests.add(ours.disk(report))
        ours_times.append(seconds)
    assert len(digests) == RUNS, "a changed file made no new disk"
    theirs.motd.write_text(f"{uuid.uuid4()}\n")
    before = theirs.image.stat().st_mtime_ns
    theirs_seconds, _ = timed(theirs.build)
    assert theirs.image.stat().st_mtime_ns > before, "mkosi made no new disk"
    return Result(
        "edit-disk", "s", statistics.median(ours_times), theirs_seconds, "mkosi --incremental", GOAL
    )


BENCHMARK = Benchmark("edit-disk", "one overlay file changed → new bootable disk, Debian minimal", run)
