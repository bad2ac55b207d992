"""Finding bubblewrap: this machine's, or one out of a tree by that tree's own loader."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from hostroot import host_root
from peers import outside_of_a_chroot, peer

from kairosbuild.core.errors import HostError
from kairosbuild.execute import bubblewrap
from kairosbuild.execute.sandbox import BubblewrapExecutor
from kairosbuild.graph.action import Action
from kairosbuild.store.store import Store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tools tree as Debian's packages make it, of this machine's files."""
    program = peer("bwrap", "bubblewrap")
    folder = tmp_path / "tree/usr"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(program, folder / "bin/bwrap")
    libraries = folder / "lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"(/\S+) \(0x", linked):
        loader = Path(name).name.startswith("ld-linux")
        place = folder / "lib64" if loader else libraries
        place.mkdir(exist_ok=True)
        shutil.copy(Path(name).resolve(), place / Path(name).name)
    return tmp_path / "tree"


@pytest.fixture(autouse=True)
def fresh() -> None:
    bubblewrap.find_bubblewrap.cache_clear()


def test_the_machines_own_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = peer("bwrap", "bubblewrap")
    monkeypatch.setattr(shutil, "which", lambda name: own)
    assert bubblewrap.find_bubblewrap(tmp_path) == (own,)


def test_one_out_of_a_tree_runs_actions(monkeypatch: pytest.MonkeyPatch, tree: Path, tmp_path: Path) -> None:
    outside_of_a_chroot("bubblewrap")
    store = Store(tmp_path / "store")
    root = host_root(store).layer
    monkeypatch.setattr(shutil, "which", lambda name: None)
    words = bubblewrap.find_bubblewrap(tree)
    assert all(str(tree) in word for word in words if word != "--library-path")
    action = Action(("/bin/sh", "-c", "echo x > /out/x"), (root,), outputs=("x",))
    done = BubblewrapExecutor(store, bwrap=words).execute(
        action, name="n", scratch=tmp_path, cancel=threading.Event()
    )
    assert store.cas.read(done.outputs["x"]) == b"x\n"


def test_an_old_one_or_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    old.chmod(0o755)
    for found in (str(old), None):
        bubblewrap.find_bubblewrap.cache_clear()
        monkeypatch.setattr(shutil, "which", lambda name, found=found: found)
        with pytest.raises(HostError) as caught:
            bubblewrap.find_bubblewrap()
        assert caught.value.reason == "no-bubblewrap"
    bubblewrap.find_bubblewrap.cache_clear()
    with pytest.raises(HostError):
        bubblewrap.find_bubblewrap(tmp_path)
