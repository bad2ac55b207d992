"""Drivers of the example recipe on a machine: compiled here, loaded there; and what does not fit is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MAIN = "from kairosbuild.cli.main import run; run()"


def kbuild(workspace: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-c", MAIN, *words, "--cache-dir", str(CACHE)]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with what it names."""
    folder = tmp_path_factory.mktemp("drivers")
    for name in ("recipes", "overlays", "drivers"):
        subprocess.run(["cp", "-r", ROOT / name, folder], check=True)
    (folder / "BUILD.yaml").write_text("version: 1\n")
    return folder


def test_modules_compiled_here_are_loaded_there(workspace: Path) -> None:
    """A module of the workspace with its option, one by DKMS, and of the firmware only what was named."""
    kbuild(workspace, "run", "recipes/debian-drivers.yaml", "boots", "--no-publish")
    console = kbuild(workspace, "log", "recipes/debian-drivers.yaml", "boots")
    assert "hello: greetings to everybody" in console
    assert "module verification failed" in console, "nobody signed it, and the kernel says so"
    told = kbuild(workspace, "log", "recipes/debian-drivers.yaml", "extra")
    assert re.search(r"firmware: 1 of the \d+ files of its packages, .* MB saved", told)


REFUSED = {
    "symbol": (
        "build: {wants: {source: wants}}",
        r"other: the module wants needs no_such_thing, which the kernel of 'kernel' \(\S+\) does not have",
        2,
    ),
    "not for this kernel": (
        "dkms: [v4l2loopback-dkms]",
        r"other: nothing for the kernel of 'kernel' \(\S+\)[^$]*BUILD_EXCLUSIVE",
        1,
    ),
    "not for dkms": ("dkms: [kmod]", "the package kmod has no dkms.conf", 2),
    "no such module": ("firmware: [iwlwifi]", "the kernel of 'kernel' has no module 'iwlwifi'", 2),
}
WANTS = """\
#include <linux/module.h>
extern int no_such_thing(void);
static int __init wants_init(void) { return no_such_thing(); }
module_init(wants_init);
MODULE_DESCRIPTION("Wants");
MODULE_LICENSE("GPL");
"""


@pytest.mark.parametrize(("fields", "message", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(workspace: Path, fields: str, message: str, code: int) -> None:
    (workspace / "wants").mkdir(exist_ok=True)
    (workspace / "wants/Makefile").write_text("obj-m := wants.o\n")
    (workspace / "wants/wants.c").write_text(WANTS)
    recipe = (workspace / "recipes/debian-drivers.yaml").read_text()
    other = f"  other: {{kind: drivers, kernel: kernel, {fields}}}\n"
    (workspace / "recipes/wrong.yaml").write_text(recipe + other)
    told = kbuild(workspace, "run", "recipes/wrong.yaml", "other", "--no-publish", code=code)
    assert re.search(message, told), told
    assert re.search(r"recipes/wrong\.yaml:\d+:3: ", told), "its place in the recipe"
