"""`kbuild plan` of a matrix of seven families and three variants, the whole process, before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Result, median_seconds

FAMILIES = ("debian", "ubuntu", "fedora", "rocky", "opensuse", "alpine", "arch")
VARIANTS = ("core", "standard", "full")
LIMIT = 1.0
RECIPE = f"""\
version: 1
name: matrix
matrix:
  family: [{", ".join(FAMILIES)}]
  variant: [{", ".join(VARIANTS)}]
nodes:
  base:    {{kind: base, tarball: "${{family}}.tar"}}
  site:    {{kind: overlay, source: site}}
  release: {{kind: overlay, files: {{etc/family: {{content: "${{family}}"}}}}}}
  variant: {{kind: overlay, files: {{etc/variant: {{content: "${{variant}}"}}}}}}
  said:    {{kind: overlay, files: {{etc/cell: {{content: "${{family}} ${{variant}}"}}}}}}
  os:      {{kind: image, layers: [base, site, release, variant, said]}}
  rootfs:  {{kind: rootfs, image: os}}
publish: {{targets: [os]}}
"""
NODES = len(FAMILIES) * 2 + 1 + len(VARIANTS) + len(FAMILIES) * len(VARIANTS) * 3


def run() -> Result:
    """The workspace is new; no node has ever been built."""
    with tempfile.TemporaryDirectory(prefix="kbuild-matrix-") as folder:
        _workspace(Path(folder))
        command = [sys.executable, "-m", "kairosbuild", "plan", "matrix.yaml", "--json", "--cache-dir=cache"]

        def plan() -> Any:
            done = subprocess.run(command, check=True, capture_output=True, cwd=folder)
            return json.loads(done.stdout)["nodes"]

        planned = [node for node in plan() if not node["name"].startswith("tools:")]
        assert len(planned) == NODES, len(planned)
        return Result(
            "plan-matrix", "s", median_seconds(plan), LIMIT, "limit", 1.0, f"{NODES} nodes, 21 cells"
        )


def _workspace(folder: Path) -> None:
    (folder / "site/etc").mkdir(parents=True)
    (folder / "site/etc/motd").write_text("hello\n")
    (folder / "matrix.yaml").write_text(RECIPE)
    for family in FAMILIES:
        subprocess.run(["tar", "-cf", f"{family}.tar", "site"], check=True, cwd=folder)


BENCHMARK = Benchmark("plan-matrix", "plan of 7 families x 3 variants, nothing built, whole process", run)
