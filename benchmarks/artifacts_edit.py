"""One overlay file changed → raw disk, qcow2, ISO, netboot and unified image, all five at once.

Against the same five built one after another, each after an edit of its own, and told besides: what the raw disk
alone takes, of which five at once are to cost less than twice.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import uuid
from typing import Any

from benchmarks.disk import RECIPE, Ours, timed
from benchmarks.harness import Benchmark, Result

GOAL = 1 / 2
RUNS = 5
MORE = """\
  qcow2:  {kind: disk, image: os, format: qcow2}
  iso:    {kind: iso, image: os}
  net:    {kind: netboot, image: os, url: "http://10.0.2.2:8080"}
  uki:    {kind: uki, image: os}
"""
ARTIFACTS = ("disk", "qcow2", "iso", "net", "uki")


class Artifacts(Ours):
    """The workspace of the disk benchmarks, with a recipe more."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe = self.home / "artifacts.yaml"
        self.recipe.write_text(RECIPE + MORE)

    def edited(self, *nodes: str) -> float:
        """Seconds of one `kbuild run` of these nodes after an edit, whole process."""
        self.motd.write_text(f"{uuid.uuid4()}\n")
        seconds, report = timed(self.run, *nodes)
        assert report["built"] == 2 + len(nodes), report  # site, os, and each artifact
        return seconds

    def run(self, *nodes: str) -> dict[str, Any]:
        """One `kbuild run` of these nodes, whole process; its report."""
        command = [sys.executable, "-m", "kairosbuild", "run", str(self.recipe), *nodes, "--json"]
        command += ["--progress=none", f"--cache-dir={self.home / 'cache'}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.home)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def run() -> Result:
    """Medians of runs that take turns, so that a busy machine is busy for both."""
    ours = Artifacts()
    ours.run(*ARTIFACTS)
    together, apart, disk = [], [], []
    for _ in range(RUNS):
        together.append(ours.edited(*ARTIFACTS))
        each = [ours.edited(node) for node in ARTIFACTS]
        apart.append(sum(each))
        disk.append(each[0])
    alone = statistics.median(disk)
    found = statistics.median(together)
    note = f"the raw disk alone {alone:.2f} s: five at once are {found / alone:.2f} times that"
    return Result("artifacts-edit", "s", found, statistics.median(apart), "one by one", GOAL, note)


BENCHMARK = Benchmark("artifacts-edit", "one overlay file changed → five artifacts, Debian minimal", run)
