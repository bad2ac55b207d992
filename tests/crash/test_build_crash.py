"""`kill -9` at random moments of a real, sandboxed build: the next run is right and the store is whole.

`KBUILD_CRASHES=200 pytest tests/crash` runs it in full; the suite has a sample.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.grid import Grid

CRASHES = int(os.environ.get("KBUILD_CRASHES", "12"))
WIDTH = 6  # nodes a layer; ten layers


def command(grid: Grid, cache: Path) -> list[str]:
    recipe = str(grid.folder / "recipe.yaml")
    return [
        sys.executable,
        "-m",
        "kairosbuild",
        "run",
        recipe,
        "--json",
        "--progress=none",
        f"--cache-dir={cache}",
    ]


def outputs(grid: Grid, cache: Path) -> dict[str, Any]:
    done = subprocess.run(command(grid, cache), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return {name: node["outputs"] for name, node in report["nodes"].items()}


def test_killed_at_random_moments_of_a_build(tmp_path: Path) -> None:
    chance = random.Random(20250101)
    grid = Grid(tmp_path, WIDTH)
    grid.make()
    cache = tmp_path / "cache"
    began = time.monotonic()
    outputs(grid, tmp_path / "first")
    whole = time.monotonic() - began
    killed = 0
    for attempt in range(CRASHES):
        grid.edit(chance.randrange(2 * WIDTH), f"{attempt}\n")
        child = subprocess.Popen(command(grid, cache), stdout=subprocess.DEVNULL, start_new_session=True)
        while not (cache / "CACHEDIR.TAG").exists() and child.poll() is None:
            time.sleep(0.01)  # a kill before there is a store means nothing
        time.sleep(chance.random() * whole / 2)  # an edited grid takes less than a new one
        os.kill(child.pid, signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed > CRASHES // 3, "the kills came too late to mean anything"
    verified = subprocess.run(
        [sys.executable, "-m", "kairosbuild", "cache", "verify", f"--cache-dir={cache}", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout
    assert outputs(grid, cache) == outputs(grid, tmp_path / "clean")


def test_two_builds_of_one_recipe_at_once(tmp_path: Path) -> None:
    grid = Grid(tmp_path, WIDTH)
    grid.make()
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(outputs(grid, tmp_path / "cache"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1]
