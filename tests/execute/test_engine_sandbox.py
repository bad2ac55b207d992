"""The engine with the real kinds, the real sandbox and the command line: one recipe from YAML to results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hostroot import host_root

from kairosbuild.store.store import Store

RECIPE = """\
version: 1
name: small
nodes:
  base: {kind: base, tarball: base.tar}
  one: {kind: rule, on: [base], sources: {a: a}, command: "cat a >/out/o", outputs: [o]}
  head: {kind: rule, on: [base], inputs: {a: one}, command: "head -c 1 a >/out/o", outputs: [o]}
  last: {kind: rule, on: [base], inputs: {a: head}, command: "cat a a >/out/o", outputs: [o]}
  layer: {kind: run, on: [base], inputs: {a: last}, command: "cp a /kept"}
"""


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("store"))
    return store.cas.path(host_root(store).layer.digest)


@pytest.fixture
def folder(tmp_path: Path, tarball: Path) -> Path:
    (tmp_path / "base.tar").write_bytes(tarball.read_bytes())
    (tmp_path / "a").write_text("AB")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "BUILD.yaml").write_text("version: 1\n")
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from kairosbuild.cli.main import run; run()", *words]


def kbuild(folder: Path, *words: str, code: int = 0) -> Any:
    flags = ("--json", "--progress", "none") if words[0] == "run" else ("--json",)
    done = subprocess.run(command(*words, *flags), cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def counts(said: Any) -> tuple[int, int, int]:
    return said["built"], said["hits"], said["unchanged"]


def test_from_nothing_to_nothing_to_do(folder: Path) -> None:
    assert counts(kbuild(folder, "run", "recipe.yaml", "-o", "last=out")) == (5, 0, 0)
    assert (folder / "out").read_text() == "AA"
    assert counts(kbuild(folder, "run", "recipe.yaml")) == (0, 0, 5)
    (folder / "a").write_text("AC")
    assert counts(kbuild(folder, "run", "recipe.yaml")) == (2, 0, 3), "head came out as before"
    (folder / "a").write_text("B")
    assert counts(kbuild(folder, "run", "recipe.yaml", "last")) == (3, 0, 1)
    assert counts(kbuild(folder, "run", "recipe.yaml")) == (1, 0, 4)
    (folder / "a").write_text("AB")
    states = {one["name"]: one["where"] for one in kbuild(folder, "plan", "recipe.yaml")["nodes"]}
    assert states == {"base": "memory"} | dict.fromkeys(("one", "head", "last", "layer"), "local")


def test_a_null_build_loads_next_to_nothing(folder: Path) -> None:
    for _ in range(2):
        kbuild(folder, "run", "recipe.yaml")
    check = (
        "import sys; from kairosbuild.cli.main import main\n"
        "assert main(['run', 'recipe.yaml', '--progress', 'none']) == 0\n"
        "heavy = {'yaml', 'networkx', 'diskcache', 'sqlite3', 'oras', 'tqdm', 'tarfile', 'subprocess',\n"
        "         'kairosbuild.execute.session', 'kairosbuild.kinds.run', 'kairosbuild.recipe.load'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_why_speaks_of_files(folder: Path) -> None:
    kbuild(folder, "run", "recipe.yaml")
    (folder / "a").write_text("changed")
    assert kbuild(folder, "why", "recipe.yaml", "one")["reasons"] == ["the file sources.a changed"]


def test_the_log_of_a_failure_is_shown(folder: Path) -> None:
    text = RECIPE.replace("head -c 1 a >/out/o", "echo it went wrong; exit 3")
    (folder / "recipe.yaml").write_text(text)
    said = kbuild(folder, "run", "recipe.yaml", code=1)
    assert said["failed"].keys() == {"head"} and said["skipped"] == {"last": "head", "layer": "head"}
    assert "it went wrong" in said["failed"]["head"]["message"]


def sleepers() -> list[int]:
    """The processes that run this file's command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"sleep 61.5" in (entry / "cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_child(folder: Path, number: signal.Signals) -> None:
    text = RECIPE.replace("head -c 1 a >/out/o", "sleep 61.5")
    (folder / "recipe.yaml").write_text(text)
    child = subprocess.Popen(
        command("run", "recipe.yaml", "--progress", "none"), cwd=folder, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not sleepers():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130 and "interrupted" in said
    assert not sleepers()
    (folder / "recipe.yaml").write_text(RECIPE)
    assert counts(kbuild(folder, "run", "recipe.yaml")) == (3, 0, 2), "what was done before is kept"
