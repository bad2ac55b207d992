"""One package more in the largest layer → what a machine fetches, against all of the image (Kairos' way).

The machine is one of folders: its program's own upgrade runs against a registry on loopback, so that bytes and
verification are real and an emulator's slowness is not in the seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.disk import bench_dir
from benchmarks.harness import Benchmark, Result
from benchmarks.memory_1g import _registry as registry
from benchmarks.mkosi import KERNEL, PACKAGES
from kairosbuild.node import assess
from kairosbuild.node.http import Access
from kairosbuild.node.machine import Machine
from kairosbuild.node.offer import find
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository
from kairosbuild.node.uki import read
from kairosbuild.node.upgrade import Done, upgrade

GOAL = 1 / 10
RECIPE = f"""\
version: 1
name: upgrade
vars: {{more: iproute2, at: ""}}
nodes:
  base:   {{kind: base, debian: {{suite: trixie}}}}
  system: {{kind: packages, on: base, install: [{", ".join(PACKAGES)}, "${{more}}"]}}
  kernel: {{kind: kernel, on: base, package: {KERNEL}}}
  agent:  {{kind: agent}}
  os:     {{kind: image, layers: [base, system, kernel, agent]}}
  boot:   {{kind: boot, image: os}}
publish: {{targets: [os, boot], to: "${{at}}"}}
"""


def run() -> Result:
    """Publish both versions, install the first, upgrade to the second."""
    home = bench_dir() / "upgrade"
    home.mkdir(parents=True, exist_ok=True)
    (home / "upgrade.yaml").write_text(RECIPE)
    with tempfile.TemporaryDirectory(dir=home) as scratch, registry(Path(scratch, "registry")) as host:
        for tag, more in (("a", "iproute2"), ("b", "iputils-ping")):
            _publish(home, f"{host}/os:{tag}", more)
        machine = _machine(Path(scratch), host)
        start = time.monotonic()
        done = _upgraded(machine, host, "b")
        seconds = time.monotonic() - start
        entry = done.entry.kernel
        assert machine.layers.damaged(entry.layers) == [], "what was put together is what was published"
    note = f"{seconds:.1f} s, no emulator"
    return Result("upgrade-bytes", "MB", done.fetched / 1e6, done.whole / 1e6, "the whole image", GOAL, note)


def _publish(home: Path, at: str, more: str) -> None:
    command = [sys.executable, "-m", "kairosbuild", "run", str(home / "upgrade.yaml"), "os", "boot"]
    command += ["--set", f"more={more}", "--set", f"at={at}", "--progress=none"]
    command += [f"--cache-dir={os.environ.get('KBUILD_BENCH_CACHE') or home / 'cache'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr


def _machine(folder: Path, host: str) -> Machine:
    """A machine that runs version a."""
    (folder / "disk").mkdir()
    (folder / "esp/EFI/Linux").mkdir(parents=True)
    machine = Machine(folder / "disk", folder / "esp", "", "", folder / "lock")
    entry = _upgraded(machine, host, "a").entry
    cmdline = read(entry.path).cmdline
    return Machine(folder / "disk", folder / "esp", cmdline, "", folder / "lock")


def _upgraded(machine: Machine, host: str, tag: str) -> Done:
    reference = parse(f"{host}/os:{tag}")
    repository = Repository(reference, Access())
    offer = find(reference, repository, "linux/amd64", _anyone)
    return upgrade(machine, offer, repository, tries=assess.TRIES, again=False, say=_silent)


def _anyone(*_: Any) -> None:
    """Nothing is signed here."""


def _silent(_: str) -> None:
    """Nobody listens."""


BENCHMARK = Benchmark("upgrade-bytes", "one package more in the largest layer → bytes a machine fetches", run)
