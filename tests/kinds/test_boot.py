"""Kind boot: what is published for machines, and a disk that takes it as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from boot_task import BASE, KERNEL, BootTask
from peers import peer
from test_disk import SITE, image, play

from kairosbuild.artifacts.partitions import PartitionSpec
from kairosbuild.boot import uki
from kairosbuild.core.canonical import loads
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.boot import Boot, BootSpec, _folders, _places
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.node.uki import read
from kairosbuild.oci.configuration import image_id
from kairosbuild.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def built(store: Store, **spec: object) -> tuple[Outputs, BootTask]:
    task = BootTask(store, BootSpec(image="os", **spec), play)
    task.inputs = {"image": (image(store, BASE, KERNEL, SITE),)}
    return Boot().build(task), task


def test_the_artifact_has_the_kernel_image_and_every_layer_it_lists(store: Store) -> None:
    outputs, task = built(store, persistent=("var", "etc"), binds=("var/lib/x",), cmdline=("quiet",))
    document = loads(task.path(outputs["artifact"]).read_bytes())
    assert document["artifactType"] == "application/vnd.kairosbuild.boot.v1"
    kernel, *forms = document["files"]
    assert (kernel["title"], kernel["mediaType"]) == ("os.efi", "application/vnd.kairosbuild.uki")
    said = read(task.path(outputs["uki"]))
    assert {one["title"] for one in forms} == {one.root_hash for one in said.layers}
    assert {one["mediaType"] for one in forms} == {"application/vnd.kairosbuild.layer.erofs"}
    words = said.cmdline.split()
    assert words[1:] == ["kbuild.keep=etc,var", "kbuild.bind=var/lib/x", "panic=5", "quiet"]
    given = loads(task.path(task.inputs["image"][0].outputs["image"]).read_bytes())
    assert said.image == image_id(given)


def test_a_disk_of_it_starts_the_very_same_and_recovery_sorts_last(store: Store, tmp_path: Path) -> None:
    outputs, _ = built(store, persistent=("var",))
    partitions = tuple(PartitionSpec(type=kind) for kind in ("esp", "layers", "recovery", "persistent"))
    task = BootTask(store, DiskSpec(image="boot", partitions=partitions), play)
    task.inputs = {"image": (Input("boot", "boot", outputs),)}
    made = Disk().build(task)
    assert made["uki"] == outputs["uki"]
    copy = [peer("mcopy", "mtools"), "-i", f"{task.path(made['disk'])}@@1M", "::EFI/Linux/recovery.efi"]
    subprocess.run([*copy, tmp_path / "recovery.efi"], check=True)
    recovery, system = read(tmp_path / "recovery.efi"), read(task.path(outputs["uki"]))
    assert recovery.recovery and not system.recovery
    assert "kbuild.disk=LABEL=kbuild-recovery" in recovery.cmdline.split()
    assert "kbuild.keep" not in recovery.cmdline
    keys = [
        next(
            line
            for line in uki.section(path.read_bytes(), ".osrel").splitlines()
            if line.startswith(b"IMAGE_ID=")
        )
        for path in (task.path(outputs["uki"]), tmp_path / "recovery.efi")
    ]
    assert keys == sorted(keys) and keys[0] != keys[1]


def test_places_and_binds_are_those_there_are() -> None:
    assert _places(["etc", "var"]) == ""
    assert "did you mean 'home'" in _places(["homes"])
    assert _folders(["var/lib/containers"]) == ""
    for bad in ("var", "usr/lib/x", "var/../x", "/var/x", "var/a b", "var/a,b"):
        assert _folders([bad]), bad
