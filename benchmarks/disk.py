"""The three disk benchmarks share a workspace: recipes/debian.yaml's system as a raw disk, and mkosi's twin of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.mkosi import KERNEL, PACKAGES, Mkosi, bench_dir

RECIPE = f"""\
version: 1
name: bench
nodes:
  base:   {{kind: base, debian: {{suite: trixie}}}}
  system: {{kind: packages, on: base, install: [{", ".join(PACKAGES)}]}}
  kernel: {{kind: kernel, on: base, package: {KERNEL}}}
  site:   {{kind: overlay, source: site}}
  os:     {{kind: image, layers: [base, system, kernel, site]}}
  disk:   {{kind: disk, image: os, format: raw}}
"""


class Ours:
    """Our side. The store is kept between runs, as mkosi's package cache is."""

    def __init__(self) -> None:
        self.home = bench_dir() / "kairosbuild"
        self.motd = self.home / "site/etc/motd"
        self.motd.parent.mkdir(parents=True, exist_ok=True)
        self.recipe = self.home / "bench.yaml"
        if not self.recipe.exists() or self.recipe.read_text() != RECIPE:
            self.recipe.write_text(RECIPE)

    def build(self, cache: Path | None = None) -> dict[str, Any]:
        """One `kbuild run`, whole process; its report."""
        command = [sys.executable, "-m", "kairosbuild", "run", str(self.recipe), "--json", "--progress=none"]
        command += [f"--cache-dir={cache or self.home / 'cache'}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.home)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def disk(self, report: dict[str, Any]) -> str:
        """The digest of the disk that a report tells of."""
        return str(report["nodes"]["disk"]["outputs"]["disk"])

    @contextmanager
    def cold(self) -> Iterator[Path]:
        """A store that has nothing but the downloads."""
        self.build()
        folder = Path(tempfile.mkdtemp(prefix="cold-", dir=self.home))
        try:
            _carry(self.recipe, self.home / "cache", folder)
            yield folder
        finally:
            from kairosbuild.execute import userns

            userns.remove(folder)


def mirror() -> str:
    """This machine's mirror of Debian."""
    from kairosbuild.sources import mirrors

    return mirrors.find(environ=os.environ).located("debian:")[0].rstrip("/")


def peer() -> Mkosi:
    """mkosi, with the overlay that ours has."""
    return Mkosi(mirror())


def timed(work: Any, *arguments: Any) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def _carry(recipe: Path, source: Path, into: Path) -> None:
    from kairosbuild.core.digest import Blob
    from kairosbuild.recipe import lockfile
    from kairosbuild.store.store import Store

    lock, old, new = lockfile.read(lockfile.path_for(recipe)), Store(source), Store(into)
    for entry in (*lock.nodes.values(), *lock.toolchain.values()):
        for pin in entry.materials:
            if old.cas.has(Blob(pin.digest, pin.size)):
                new.cas.add_copy(old.cas.path(pin.digest))
