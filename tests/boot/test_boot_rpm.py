"""recipes/fedora.yaml and rocky.yaml as they are, with only mirrors configured: locked, built, booted, published."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from distros.rpm_distribution import FEDORA, ROCKY, Shape, made
from distros.rpm_serving import kbuild, served
from peers import peer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")


@pytest.mark.parametrize(
    ("shape", "image"),
    [(FEDORA, "quay.io/fedora/fedora:43"), (ROCKY, "docker.io/rockylinux/rockylinux:9")],
    ids=["fedora", "rocky"],
)
def test_the_recipe_as_it_is(shape: Shape, image: str, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    for name in ("recipes", "overlays"):
        ignored = shutil.ignore_patterns("*.lock")
        shutil.copytree(ROOT / name, workspace / name, symlinks=True, ignore=ignored)
    with served(made(shape), image, tmp_path / "registry") as there:
        recipe = f"recipes/{shape.id}.yaml"
        to = f"{there.registry}/os/{shape.id}:1"
        out, _ = kbuild(
            workspace, "run", recipe, "--json", "--push", to, env=there.environment, cache=CACHE
        )  # fmt: skip
        report = json.loads(out)
        assert not report["failed"]
        lock = json.loads((workspace / f"recipes/{shape.id}.lock").read_text())
        system = lock["nodes"]["system"]
        assert "systemd" in system["data"]["asked"]
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
