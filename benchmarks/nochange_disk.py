"""Nothing changed, the same disk asked for again, the whole process, against mkosi's incremental build."""

from __future__ import annotations

from benchmarks.disk import Ours, peer, timed
from benchmarks.harness import Benchmark, Result, median_seconds

SECONDS = 1.0  # the goal, whatever the peer takes


def run() -> Result:
    """Both have built before."""
    ours, theirs = Ours(), peer()
    ours.build()
    theirs.build()
    ours_seconds = median_seconds(ours.build)
    report = ours.build()
    assert report["built"] == 0, report
    theirs_seconds, _ = timed(theirs.build)
    note = f"the goal is {SECONDS:.0f} s"
    goal = SECONDS / theirs_seconds
    return Result("nochange-disk", "s", ours_seconds, theirs_seconds, "mkosi --incremental", goal, note)


BENCHMARK = Benchmark("nochange-disk", "nothing changed, same image", run)
