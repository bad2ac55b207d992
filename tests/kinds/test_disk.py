"""Kind disk: what stands where, what is made once, what is refused. The bytes of layers are played."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BASE, KERNEL, VERSION, BootTask, Content, layer
from peers import peer

from kairosbuild.artifacts.partitions import PartitionSpec
from kairosbuild.boot import gce, uki
from kairosbuild.boot.layerfs import ROOT, folders
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.oci.configuration import image_id
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.store import Store

SITE: Content = {"etc": None, "etc/motd": b"site\n"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def play(action: Action) -> Mapping[str, bytes]:
    """Instead of a filesystem, bytes that depend on the layer."""
    if "initrd" in action.inputs:
        return {"initrd": b"packed " + action.inputs["initrd"].digest.encode()}
    seed = action.inputs["layer"].digest + action.inputs["folders"].digest
    return {"layer": hashlib.sha256(seed.encode()).digest() * 1000}


def image(store: Store, *layers: Content) -> Input:
    refs = [layer(store, content) for content in layers]
    listed = [
        {"name": f"l{n}", "layer": ref.layer.json(), "index": ref.index.json()} for n, ref in enumerate(refs)
    ]
    document = {"schema": 1, "platform": "linux/amd64", "epoch": 0, "config": {}, "layers": listed}
    return Input("os", "image", {"image": store.cas.put_bytes(dumps(document))})


def build(
    store: Store, *layers: Content, task: BootTask | None = None, **spec: Any
) -> tuple[Outputs, BootTask]:
    task = task or BootTask(store, DiskSpec(image="os", **spec), play)
    task.inputs = {"image": (image(store, *layers),)}
    return Disk().build(task), task


def arguments(task: BootTask, outputs: Outputs) -> list[str]:
    return uki.section(task.path(outputs["uki"]).read_bytes(), ".cmdline").decode().split()


def test_the_uki_says_which_layers_are_the_root(store: Store) -> None:
    outputs, task = build(store, BASE, KERNEL, SITE, cmdline=("quiet",))
    told = arguments(task, outputs)
    listed = told[0].removeprefix("kbuild.layers=").split(",")
    assert len(listed) == 3
    assert all(offset == "32768" for _, offset in (one.split(":") for one in listed))
    assert told[1:] == ["panic=5", "quiet"]
    assert uki.section(task.path(outputs["uki"]).read_bytes(), ".uname").decode() == VERSION
    release = uki.section(task.path(outputs["uki"]).read_bytes(), ".osrel")
    assert release.startswith(BASE["usr/lib/os-release"])
    document = loads(task.path(task.inputs["image"][0].outputs["image"]).read_bytes())
    assert f"KBUILD_IMAGE={image_id(document)}".encode() in release.splitlines()


def test_layers_lie_on_the_disk_under_their_root_hashes(store: Store, tmp_path: Path) -> None:
    outputs, task = build(store, BASE, KERNEL, SITE)
    disk = task.path(outputs["disk"])
    with disk.open("rb") as file:
        file.seek(1024 + 128 + 32)
        first, last = struct.unpack("<QQ", file.read(16))
        file.seek(first * 512)
        (tmp_path / "fs").write_bytes(file.read((last - first + 1) * 512))
    subprocess.run([peer("e2fsck", "e2fsprogs"), "-fn", tmp_path / "fs"], check=True, capture_output=True)
    for one in arguments(task, outputs)[0].removeprefix("kbuild.layers=").split(","):
        name, offset = one.split(":")
        dump = [peer("debugfs", "e2fsprogs"), "-R", f"dump {name} {tmp_path}/layer", tmp_path / "fs"]
        subprocess.run(dump, check=True, capture_output=True)
        verify = [peer("veritysetup", "cryptsetup-bin"), "verify", f"--hash-offset={offset}"]
        subprocess.run([*verify, tmp_path / "layer", tmp_path / "layer", name], check=True)


def test_the_boot_entry_is_counted(store: Store, tmp_path: Path) -> None:
    for tries, name in ((3, "os-1+3.efi"), (0, "os-1.efi")):
        outputs, task = build(store, BASE, KERNEL, tries=tries)
        listing = [peer("mdir", "mtools"), "-b", "-i", f"{task.path(outputs['disk'])}@@1M", "::EFI/Linux"]
        shown = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
        assert shown.split() == [f"::/EFI/Linux/{name}"]


@pytest.mark.parametrize(("form", "known"), [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhd", "vpc")])
def test_every_format_is_the_same_disk_to_qemu(store: Store, tmp_path: Path, form: str, known: str) -> None:
    raw, task = build(store, BASE, KERNEL)
    made, _ = build(store, BASE, KERNEL, format=form)
    assert build(Store(tmp_path / "other"), BASE, KERNEL, format=form)[0] == made
    assert made["uki"] == raw["uki"]
    tool = peer("qemu-img", "qemu-utils")
    compare = [tool, "compare", "-f", "raw", "-F", known, task.path(raw["disk"]), task.path(made["disk"])]
    subprocess.run(compare, check=True)
    told = subprocess.run(
        [tool, "info", "-f", known, task.path(made["disk"])], capture_output=True, text=True
    )
    assert f"({raw['disk'].size} bytes)" in told.stdout
    if form != "vhd":  # there is nothing to check in a fixed one
        subprocess.run([tool, "check", "-f", known, task.path(made["disk"])], check=True, capture_output=True)


def test_googles_archive_holds_the_disk(store: Store, tmp_path: Path) -> None:
    raw, task = build(store, BASE, KERNEL, size=1 << 30)
    made, _ = build(store, BASE, KERNEL, format="gce")
    assert build(Store(tmp_path / "other"), BASE, KERNEL, format="gce")[0] == made
    subprocess.run(["tar", "-xzf", task.path(made["disk"]), "-C", tmp_path], check=True)
    assert (tmp_path / "disk.raw").stat().st_size == 1 << 30, "whole GiB are asked for"
    subprocess.run(["cmp", task.path(raw["disk"]), tmp_path / "disk.raw"], check=True)
    assert made["disk"].size < 3 << 20
    again = gce.unpacked(task.path(made["disk"]), tmp_path / "again")
    subprocess.run(["cmp", task.path(raw["disk"]), again], check=True)
    document = loads(task.path(made["artifact"]).read_bytes())
    assert document["files"][0]["title"] == "os.tar.gz"


def test_a_changed_layer_is_all_that_is_made_anew(store: Store) -> None:
    _, task = build(store, BASE, KERNEL, SITE)
    assert len(task.actions) == 4, "three layers and an initrd"
    build(store, BASE, KERNEL, {**SITE, "etc/motd": b"changed\n"}, task=task)
    assert len(task.actions) == 5


def test_the_artifact_describes_the_disk(store: Store) -> None:
    outputs, task = build(store, BASE, KERNEL, format="qcow2", entry="debian")
    document = loads(task.path(outputs["artifact"]).read_bytes())
    (file,) = document["files"]
    assert file["digest"] == outputs["disk"].digest
    assert file["title"] == "debian.qcow2"
    assert file["mediaType"] == "application/vnd.kairosbuild.disk.qcow2"


def test_folders_that_a_layer_only_implies_are_as_those_below_have_them(store: Store) -> None:
    _, task = build(store, BASE, KERNEL, {"etc/deep/x": b"1"})
    head = task.path(task.actions[2].inputs["folders"]).read_bytes()
    expected = folders([("etc", 0o755, 0, 0), ("etc/deep", 0o755, 0, 0)], task.epoch)
    assert head == expected
    assert task.path(task.actions[0].inputs["folders"]).read_bytes() == folders([], task.epoch)
    assert ROOT[1] == 0o755


def test_a_place_that_a_layer_replaces_is_cut(store: Store) -> None:
    outputs, task = build(store, BASE, KERNEL, {**SITE, "etc/.wh..wh..opq": b""})
    assert "kbuild.cut=etc:1" in arguments(task, outputs)


def test_layers_below_an_opaque_root_are_left_out(store: Store) -> None:
    outputs, task = build(store, {"old": b""}, {**BASE, **KERNEL, ".wh..wh..opq": b""})
    assert len(arguments(task, outputs)[0].split(",")) == 1


def table(*partitions: str) -> tuple[PartitionSpec, ...]:
    """Partitions as `type` or `type:MiB`."""
    found = [one.partition(":") for one in partitions]
    return tuple(PartitionSpec(type=kind, size=int(size or 0) << 20) for kind, _, size in found)


def dumped(disk: Path, *more: str) -> str:
    command = [peer("sgdisk", "gdisk"), *more, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("sector", ["512", "4096"])
def test_a_declared_table_is_what_the_disk_has(store: Store, tmp_path: Path, sector: str) -> None:
    partitions = (
        *table("esp:300", "layers", "recovery:32", "linux:8"),
        PartitionSpec(
            type="933ac7e1-2eb4-4f13-b844-0e14e2aef915", name="homes", size=16 << 20, filesystem="ext4"
        ),
        PartitionSpec(type="persistent"),
    )
    outputs, task = build(store, BASE, KERNEL, partitions=partitions, sector_size=sector, size=1 << 30)
    disk = task.path(outputs["disk"])
    found = gpt_entries(disk, int(sector))
    names = ["esp", "kbuild-layers", "recovery", "linux", "homes", "persistent"]
    assert [name for name, _, _ in found] == names
    assert found[-1][1] + found[-1][2] == (1 << 30) - (1 << 20), "the last without a size takes what is left"
    with disk.open("rb") as file:
        for name, start, size in found:
            file.seek(start)
            (tmp_path / name).write_bytes(file.read(size))
    subprocess.run([peer("fsck.vfat", "dosfstools"), "-n", tmp_path / "esp"], check=True, capture_output=True)
    for name in ("kbuild-layers", "recovery", "homes", "persistent"):
        subprocess.run([peer("e2fsck", "e2fsprogs"), "-fn", tmp_path / name], check=True, capture_output=True)
    if sector == "512":
        assert "No problems found" in dumped(disk, "--verify")


def gpt_entries(disk: Path, sector: int) -> list[tuple[str, int, int]]:
    """Name, start and size in bytes."""
    with disk.open("rb") as file:
        file.seek(2 * sector)
        data = file.read(128 * 128)
    found = []
    for at in range(0, len(data), 128):
        first, last = struct.unpack_from("<QQ", data, at + 32)
        if last:
            name = data[at + 56 : at + 128].decode("utf-16-le").rstrip("\0")
            found.append((name, first * sector, (last - first + 1) * sector))
    return found


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"size": 40 << 20}, "disk"),
        ({"partitions": table("esp:1", "layers")}, "esp"),
        ({"partitions": table("esp", "layers:1")}, "layers"),
    ],
)
def test_the_number_that_is_said_to_fit_fits(store: Store, spec: dict[str, Any], what: str) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, BASE, KERNEL, **spec)
    fits = int(caught.value.hint.partition("M")[0])
    sizes = {"esp": ("esp:%d", "layers"), "layers": ("esp", "layers:%d")}
    fitting = (
        {"size": fits << 20}
        if what == "disk"
        else {"partitions": table(*(one % fits if "%" in one else one for one in sizes[what]))}
    )
    build(store, BASE, KERNEL, **fitting)
    short = (
        {"size": (fits - 1) << 20}
        if what == "disk"
        else {"partitions": table(*(one % (fits - 1) if "%" in one else one for one in sizes[what]))}
    )
    with pytest.raises(KbuildError):
        build(store, BASE, KERNEL, **short)


def test_every_problem_of_a_table_is_told_at_once(store: Store) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, BASE, KERNEL, partitions=table("esp:8", "recovery:1"))
    told = str(caught.value)
    assert "esp partition of 8M" in told
    assert "recovery partition of 1M" in told
    assert "type layers" in told


def plain(kind: str, size: int = 0, filesystem: str = "auto") -> dict[str, Any]:
    """A partition as a recipe's declaration has it."""
    return {"type": kind, "name": "", "size": size << 20, "filesystem": filesystem}


BOTH = [plain("esp"), plain("layers")]


@pytest.mark.parametrize(
    ("partitions", "more", "told"),
    [
        ([], {}, []),
        ([], {"size": 1 << 20}, []),
        (BOTH, {"size": 51 << 20}, []),
        (BOTH, {"size": 50 << 20}, [("size", "51M is the least; or leave size out")]),
        (BOTH[:1], {}, [("partitions", "add `{type: layers}`")]),
        ([*BOTH, plain("esp")], {}, [("partitions", "keep one of them")]),
        (BOTH, {"firmware": "both"}, [("partitions", "add `{type: bios-boot}`")]),
        ([plain("esp", 32), plain("layers", 15)], {}, [
            ("partitions.0.size", "33M is the least"), ("partitions.1.size", "16M is the least")]),
        ([*BOTH, plain("var", 1)], {}, []),
        ([*BOTH, plain("var", 1, "ext4")], {}, [("partitions.2.size", "16M is the least")]),
        ([plain("esp", 200), plain("layers")], {"sector_size": "4096"}, [
            ("partitions.0.size", "257M is the least")]),
        ([*BOTH, plain("home", 1000)], {"size": 1 << 30}, [("size", "1051M is the least; or leave size out")]),
    ],
)  # fmt: skip
def test_what_is_told_of_a_table_from_the_recipe(
    partitions: list[dict[str, Any]], more: dict[str, Any], told: list[tuple[str, str]]
) -> None:
    spec = {"partitions": partitions, "sector_size": "512", "firmware": "uefi", "size": 0, **more}
    found = Disk().check("d", Declaration("d", "disk", spec), {})
    assert [(field, hint) for field, _, hint in found] == told


def test_an_efi_partition_has_room_for_three_versions(store: Store) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, BASE, KERNEL, {"large": b""}, partitions=table("esp:8", "layers"))
    assert "too small for this version, the next and recovery" in caught.value.message


@pytest.mark.parametrize(
    ("layers", "spec", "reason"),
    [
        ((BASE,), {}, "disk-kernel"),
        ((BASE, KERNEL, {"boot/vmlinuz-9": b"k"}), {}, "disk-kernel"),
        ((BASE, KERNEL), {"size": 20 << 20}, "disk-size"),
        ((BASE, KERNEL), {"size": 50 << 20}, "disk-size"),
        ((BASE, KERNEL), {"partitions": table("esp:8", "layers")}, "partition-size"),
        ((BASE, KERNEL), {"partitions": table("esp", "layers:8")}, "partition-size"),
        ((BASE, KERNEL), {"partitions": table("esp")}, "partition-missing"),
        ((BASE, KERNEL), {"partitions": table("esp", "layers", "layers")}, "partition-missing"),
        ((BASE, KERNEL), {"cmdline": ("x" * 2000,)}, "cmdline-too-long"),
        ((BASE, {"boot/vmlinuz-9": b"k"}), {}, "missing-module"),
    ],
)
def test_what_cannot_be_is_an_error(
    store: Store, layers: tuple[Content, ...], spec: dict[str, Any], reason: str
) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, *layers, **spec)
    assert caught.value.reason == reason


def test_a_given_size_is_the_disks(store: Store) -> None:
    outputs, _ = build(store, BASE, KERNEL, size=1 << 30)
    assert outputs["disk"].size == 1 << 30
