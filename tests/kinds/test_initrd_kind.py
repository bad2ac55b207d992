"""Kind initrd: what is added to the shared one, and who takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BASE, KERNEL, MODULES, VERSION, BootTask, node

from kairosbuild.artifacts.entry import initrd_of
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input
from kairosbuild.kinds.disk import DiskSpec
from kairosbuild.kinds.initrd import Initrd, InitrdSpec
from kairosbuild.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def play(action: Action) -> Mapping[str, bytes]:
    return dict.fromkeys(action.outputs, b"packed")


def image(store: Store, **boot: Any) -> Input:
    nodes = [node(store, "base", BASE), node(store, "kernel", KERNEL)]
    layers = [
        {"name": n.name, "layer": n.outputs["layer"].json(), "index": n.outputs["index"].json()}
        for n in nodes
    ]
    return Input("os", "image", {"image": store.cas.put_bytes(dumps({"layers": layers, "boot": boot}))})


def test_modules_files_and_hooks(store: Store, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "20-b").write_text("echo b")
    (hooks / "10-a").write_text("echo a")
    (tmp_path / "conf").write_text("x")
    task = BootTask(
        store,
        InitrdSpec(image="os", modules=("crc",), files={"etc/conf": "conf"}, hooks={"root": "hooks"}),
        play,
        inputs={"image": (image(store, cmdline=["quiet"], early=["erofs"]),)},
        sources={"files.etc/conf": tmp_path / "conf", "hooks.root": hooks},
    )
    outputs = Initrd().build(task)
    assert loads(task.path(outputs["about"]).read_bytes()) == {"kernel": VERSION}
    (packing,) = task.actions
    archive = task.path(packing.inputs["initrd"]).read_bytes()
    assert b"etc/conf\0" in archive and archive.index(b"echo a") < archive.index(b"echo b")
    assert b"erofs\n" in archive


def test_a_disk_takes_the_initrd_that_is_for_its_kernel(store: Store) -> None:
    for version in (VERSION, "5.0"):
        about = store.cas.put_bytes(dumps({"kernel": version}))
        given = Input("initrd", "initrd", {"initrd": store.cas.put_bytes(b"mine"), "about": about})
        inputs = {"image": (image(store),), "initrd": (given,)}
        task = BootTask(store, DiskSpec(image="os", initrd="early"), play, inputs=inputs)
        if version == VERSION:
            assert task.path(initrd_of(task, stack_of_image(task), VERSION)).read_bytes() == b"mine"
            continue
        with pytest.raises(KbuildError) as caught:
            initrd_of(task, stack_of_image(task), VERSION)
        assert caught.value.reason == "initrd-kernel"
        assert "'early'" in caught.value.message and "'os'" in caught.value.message


def test_a_module_that_no_layer_has(store: Store) -> None:
    task = BootTask(store, InitrdSpec(image="os", early=("eroffs",)), play, inputs={"image": (image(store),)})
    with pytest.raises(KbuildError) as caught:
        Initrd().build(task)
    assert caught.value.reason == "initrd-module"
    assert MODULES.endswith(VERSION)
