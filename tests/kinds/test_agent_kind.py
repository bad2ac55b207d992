"""Kind agent: what it ships to machines is in its key, file by file."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kairosbuild import node
from kairosbuild.graph.explain import compare
from kairosbuild.graph.keys import key, preimage
from kairosbuild.graph.node import UNLOCKED
from kairosbuild.kinds.agent import BORROWED, Agent, program
from kairosbuild.recipe.declaration import Declaration


def document() -> dict[str, Any]:
    return preimage(
        Agent(),
        Declaration("agent", "agent", {}),
        platform="linux/amd64",
        epoch=0,
        inputs={},
        sources={},
        locked=UNLOCKED,
        tools={},
    )


@pytest.mark.parametrize("name", ["node/assess.py", "node/files/kbuild-node.service", *BORROWED])
def test_a_changed_file_of_the_machines_program_is_another_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(next(iter(node.__path__))).parent
    for folder in ("node", "boot", "core"):
        shutil.copytree(package / folder, tmp_path / folder)
    monkeypatch.setattr(node, "__path__", [str(tmp_path / "node")])
    before = document()
    assert key(before) == key(document())
    with (tmp_path / name).open("a") as file:
        file.write("# more\n")
    after = document()
    assert key(after) != key(before)
    assert compare(before, after) == (
        f"this program's {name.removeprefix('node/files/')} changed, which it ships",
    )


def test_what_is_shipped_needs_nothing_that_is_not(tmp_path: Path) -> None:
    shipped = program()
    for name, data in shipped.items():
        file = tmp_path / "kairosbuild" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    modules = [name.removesuffix(".py").replace("/", ".") for name in shipped if "__" not in name]
    said = "".join(f"import kairosbuild.{name}\n" for name in modules)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{said}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kairosbuild.node.install" in said
