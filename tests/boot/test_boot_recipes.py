"""The recipes as they are, with only mirrors configured, each against a shape of its distribution: locked, built,
booted, published.

    KBUILD_DISTRIBUTIONS=all .venv/bin/python -m pytest tests/boot/test_boot_recipes.py

tries all of them; by default those that differ most. What a shape is: docs/families.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from distros import ubuntu
from distros.rpm_distribution import ALMALINUX, FEDORA, FEDORA_DEVEL, ROCKY, TUMBLEWEED, Shape, made
from distros.rpm_serving import Served, kbuild, served, serving
from peers import peer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
Serving = Callable[[Path], AbstractContextManager[Served]]


def rpms(shape: Shape, image: str) -> Serving:
    return lambda work: served(made(shape), image, work)


@contextmanager
def of_ubuntu(work: Path) -> Iterator[Served]:
    work.mkdir()
    files = ubuntu.whole(work)
    mirrors = {"ubuntu": "", "ubuntu-security": ""}
    with serving(files, mirrors, work / "image", "docker.io/library/ubuntu:24.04", work / "served") as there:
        yield there


OFTEN = {
    "fedora": rpms(FEDORA, "quay.io/fedora/fedora:43"),
    "rocky": rpms(ROCKY, "docker.io/rockylinux/rockylinux:9"),
}
SELDOM = {
    "fedora-drivers": rpms(FEDORA_DEVEL, "quay.io/fedora/fedora:43"),
    "almalinux": rpms(ALMALINUX, "quay.io/almalinuxorg/almalinux:9"),
    "opensuse-tumbleweed": rpms(TUMBLEWEED, "registry.opensuse.org/opensuse/tumbleweed:latest"),
    "ubuntu": of_ubuntu,
}
TRIED = OFTEN | (SELDOM if os.environ.get("KBUILD_DISTRIBUTIONS") == "all" else {})


@pytest.mark.parametrize("name", TRIED)
def test_the_recipe_as_it_is(name: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    for folder in ("recipes", "overlays", "drivers"):
        ignored = shutil.ignore_patterns("*.lock")
        shutil.copytree(ROOT / folder, workspace / folder, symlinks=True, ignore=ignored)
    with TRIED[name](tmp_path / "registry") as there:
        recipe = f"recipes/{name}.yaml"
        to = f"{there.registry}/os/{name}:1"
        out, _ = kbuild(
            workspace, "run", recipe, "--json", "--push", to, env=there.environment, cache=CACHE
        )  # fmt: skip
        report = json.loads(out)
        assert not report["failed"]
        lock = json.loads((workspace / f"recipes/{name}.lock").read_text())
        assert "systemd" in {row["name"] for row in lock["nodes"]["system"]["data"]["packages"]}
        assert "127.0.0.1" not in json.dumps(lock), "no mirror in a lock"
        again, _ = kbuild(
            workspace, "run", recipe, "--json", "--no-publish", "--locked", "--offline",
            env=there.environment, cache=CACHE,
        )  # fmt: skip
        assert json.loads(again)["built"] == 0
        inspected = subprocess.run(
            [peer("skopeo"), "inspect", "--tls-verify=false", f"docker://{to}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(json.loads(inspected.stdout)["Layers"]) >= 4
