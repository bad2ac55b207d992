"""A small workspace whose actions run in the real sandbox, and kbuild as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.grid import host_tar

RECIPE = """\
version: 1
name: small
vars: {word: hello}
nodes:
  base:  {kind: base, tarball: base.tar}
  site:  {kind: overlay, source: site}
  made:  {kind: rule, on: [base], sources: {motd: site/etc/motd}, outputs: [o], command: "cat motd >/out/o"}
  said:  {kind: rule, on: [base], outputs: [o], command: "echo ${word} >/out/o"}
  both:  {kind: rule, on: [base], inputs: {made: made, said: said}, outputs: [o], command: "cat made said >/out/o"}
"""
IMAGE = """\
  os:    {kind: image, layers: [base, site]}
publish: {targets: [os]}
"""


class Workspace:
    """A folder and the verbs run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "site/etc").mkdir(parents=True)
        self.edit("one")
        (folder / "small.yaml").write_text(RECIPE)
        (folder / "image.yaml").write_text(RECIPE + IMAGE)
        host_tar(folder / "base.tar")

    def edit(self, text: str) -> None:
        (self.folder / "site/etc/motd").write_text(text + "\n")

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, stderr: int = subprocess.PIPE
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "kairosbuild", *words], cwd=self.folder, text=True, env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip

    def kbuild(self, *words: str, code: int = 0, env: Mapping[str, str] | None = None) -> tuple[str, str]:
        child = self.start(*words, env=env)
        out, err = child.communicate(timeout=120)
        assert child.returncode == code, (child.returncode, out, err)
        return out, err

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        return json.loads(self.kbuild("run", "small.yaml", "--json", *words, code=code)[0])
