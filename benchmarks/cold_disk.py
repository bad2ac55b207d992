"""From nothing but cached downloads to a bootable disk, the whole process, against mkosi."""

from __future__ import annotations

from benchmarks.disk import Ours, peer, timed
from benchmarks.harness import Benchmark, Result


def run() -> Result:
    """Ours starts from a store that holds the pinned files alone, mkosi from its package cache alone."""
    ours, theirs = Ours(), peer()
    with ours.cold() as cache:
        ours_seconds, report = timed(ours.build, cache)
        assert report["unchanged"] == report["hits"] == 0, report
    theirs.build()
    theirs.forget()
    theirs_seconds, _ = timed(theirs.build)
    note = "ours includes unpacking its tools; mkosi's tools tree is there already"
    return Result("cold-disk", "s", ours_seconds, theirs_seconds, "mkosi", 1.0, note)


BENCHMARK = Benchmark("cold-disk", "cold, same image, downloads cached on both sides", run)
