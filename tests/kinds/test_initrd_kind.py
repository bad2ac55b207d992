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
from kairosbuild.kinds.boot import Boot
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.kinds.initrd import Initrd, InitrdSpec
from kairosbuild.kinds.iso import Iso
from kairosbuild.kinds.netboot import Netboot
from kairosbuild.kinds.uki import Uki
from kairosbuild.recipe.declaration import Declaration
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


ARTIFACTS = {"boot": Boot(), "disk": Disk(), "iso": Iso(), "netboot": Netboot(), "uki": Uki()}


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_an_initrd_of_another_kernel_is_told_from_the_recipe(kind: str) -> None:
    known = {
        "linux": Declaration("linux", "kernel", {}),
        "signed": Declaration("signed", "sign-modules", {}, {"of": ("linux",)}),
        "other": Declaration("other", "kernel", {}),
        "os": Declaration("os", "image", {}, {"layers": ("linux",)}),
        "twin": Declaration("twin", "image", {}, {"layers": ("signed",)}),
        "older": Declaration("older", "image", {}, {"layers": ("other",)}),
        "started": Declaration("started", "boot", {}, {"image": ("os",)}),
    }

    def told(image: str, of: str) -> list[tuple[str, str, str]]:
        given = {**known, "mine": Declaration("mine", "initrd", {}, {"image": (of,)})}
        spec = {"firmware": "uefi", "sector_size": "512", "partitions": [], "size": 0, "encrypt": None}
        own = Declaration("it", kind, spec, {"image": (image,), "initrd": ("mine",)})
        return list(ARTIFACTS[kind].check("it", own, given))

    ((field, message, hint),) = told("os", "older")
    assert field == "initrd"
    assert message == "'mine' is for the kernel 'other' of 'older', and 'os' has 'linux'"
    assert "'os'" in hint
    assert told("started", "older") and not told("started", "os")
    assert not told("os", "os") and not told("os", "twin") and not told("os", "nonesuch")


def signed_and_not(**compiled: object) -> dict[str, Declaration]:
    """Two images of the same kernel and modules: `os` with them as they are, `good` with them signed."""
    driver = {"build": {}, "dkms": [], "packages": [], "prebuilt": {}, **compiled}
    return {
        "linux": Declaration("linux", "kernel", {}),
        "wifi": Declaration("wifi", "drivers", driver, {"kernel": ("linux",)}),
        "signed": Declaration("signed", "sign-modules", {}, {"of": ("wifi",)}),
        "os": Declaration("os", "image", {}, {"layers": ("linux", "wifi")}),
        "good": Declaration("good", "image", {}, {"layers": ("linux", "signed")}),
    }


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_modules_nobody_signed_are_told_where_the_artifact_asks_for_signatures(kind: str) -> None:
    known = signed_and_not(build={"hello": {}})

    def told(image: str, *cmdline: str) -> list[tuple[str, str, str]]:
        empty = {"firmware": "uefi", "sector_size": "512", "partitions": [], "size": 0, "encrypt": None}
        own = Declaration("it", kind, {**empty, "cmdline": list(cmdline)}, {"image": (image,)})
        return list(ARTIFACTS[kind].check("it", own, known))

    ((field, message, hint),) = told("os", "quiet", "lockdown=integrity")
    assert (
        field == "cmdline" and "'wifi'" in message and "'os'" in message and "lockdown=integrity" in message
    )
    assert "sign-modules" in hint
    assert not told("os", "quiet") and not told("good", "lockdown=integrity")


@pytest.mark.parametrize("kind", ARTIFACTS)
def test_modules_nobody_signed_are_foreseen_where_secure_boot_locks_the_kernel_down(kind: str) -> None:
    known = signed_and_not(dkms=["x-dkms"])
    about = {"version": "6.12", "lockdown": "secure-boot"}

    def told(image: str, sign: bool = True, about: dict[str, str] | None = about) -> list[KbuildError]:
        own = Declaration("it", kind, {"sign": {"key": ""} if sign else None}, {"image": (image,)})
        outputs = {("linux", "kernel"): about}
        return list(ARTIFACTS[kind].foresee(own, known, lambda *asked: outputs.get(asked)))

    (one,) = told("os")
    assert one.reason == "artifact-unsigned" and "sign-modules" in one.hint
    assert all(name in one.message for name in ("it", "'wifi'", "'linux'"))
    assert not told("good") and not told("os", sign=False)
    assert not told("os", about={"version": "6.12"}) and not told("os", about=None)
