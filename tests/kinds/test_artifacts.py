"""Kinds uki, iso, netboot, rootfs, sysext, confext and BIOS disks: what is in them, out of layers that are played."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BASE, EMPTY, KERNEL, BootTask, Content, layer, node
from isos import extracted, xorriso
from peers import peer

from kairosbuild.artifacts.extension import VeritySignSpec
from kairosbuild.boot import uki
from kairosbuild.cli.main import main
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.confext import Confext
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.kinds.iso import Iso, IsoSpec
from kairosbuild.kinds.netboot import Netboot, NetbootSpec
from kairosbuild.kinds.rootfs import Rootfs, RootfsSpec
from kairosbuild.kinds.sysext import Sysext
from kairosbuild.kinds.uki import Uki, UkiSpec
from kairosbuild.recipe.fields import infos
from kairosbuild.store.store import Store

SITE: Content = {"etc": None, "etc/motd": b"site\n"}
CORE = bytes(512) + b"the rest of GRUB" * 299


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def play(action: Action) -> Mapping[str, bytes]:
    """Instead of filesystems, bytes that depend on what goes in."""
    if "core" in action.outputs:
        return {"core": CORE, "boot": b"\xeb" + bytes(511), "hybrid": bytes(512)}
    seed = " ".join(f"{name} {blob.digest}" for name, blob in sorted(action.inputs.items()))
    content = hashlib.sha256(seed.encode()).digest() * 1000
    return dict.fromkeys(action.outputs, content)


def made(store: Store, kind: Any, spec: Any, *layers: Content) -> tuple[Outputs, BootTask]:
    refs = [layer(store, content) for content in layers or (BASE, KERNEL, SITE)]
    listed = [
        {"name": f"l{n}", "layer": ref.layer.json(), "index": ref.index.json()} for n, ref in enumerate(refs)
    ]
    document = store.cas.put_bytes(dumps({**EMPTY, "layers": listed}))
    task = BootTask(store, spec, play)
    task.inputs = {"image": (Input("os", "image", {"image": document}),)}
    return kind.build(task), task


def files(task: BootTask, outputs: Outputs) -> dict[str, Blob]:
    document = loads(task.path(outputs["artifact"]).read_bytes())
    return {one["title"]: Blob(one["digest"], one["size"]) for one in document["files"]}


def cmdline(image: bytes) -> list[str]:
    return uki.section(image, ".cmdline").decode().split()


def test_a_unified_image_has_its_layers_behind_the_initrd(store: Store, tmp_path: Path) -> None:
    outputs, task = made(store, Uki(), UkiSpec(image="os"))
    image = task.path(outputs["uki"]).read_bytes()
    listed = [one.partition(":")[0] for one in cmdline(image)[0].partition("=")[2].split(",")]
    assert "kbuild.disk=memory" in cmdline(image)
    archive = uki.section(image, ".initrd")
    at = archive.index(b"070701")
    assert at % 4 == 0, "a kernel skips to whole words"
    (tmp_path / "beside").mkdir()
    subprocess.run(
        [peer("cpio"), "-id", "--quiet"],
        input=archive[at:],
        cwd=tmp_path / "beside",
        check=True,
        capture_output=True,
    )
    names = {one.name for one in (tmp_path / "beside/layers").iterdir()}
    assert names == set(listed)


def test_a_unified_image_alone_is_the_disks(store: Store) -> None:
    alone, _ = made(store, Uki(), UkiSpec(image="os", layers="disk"))
    disk, _ = made(store, Disk(), DiskSpec(image="os"))
    assert alone["uki"] == disk["uki"]


def test_all_artifacts_take_the_same_boot_forms(store: Store) -> None:
    _, task = made(store, Disk(), DiskSpec(image="os"))
    executed = len(task.actions)
    for kind, spec in (
        (Uki(), UkiSpec(image="os")),
        (Iso(), IsoSpec(image="os")),
        (Netboot(), NetbootSpec(image="os")),
        (Disk(), DiskSpec(image="os", format="qcow2")),
    ):
        task.spec = spec
        kind.build(task)
    others = [action.outputs for action in task.actions[executed:]]
    assert ("layer",) not in others, "no layer is made anew"
    assert sorted(others) == [("core", "boot", "hybrid"), ("initrd",)], "the second initrd has network cards"


def test_a_boot_server_offers_script_kernel_and_layers(store: Store) -> None:
    outputs, task = made(store, Netboot(), NetbootSpec(image="os", url="http://10.0.0.1/os", entry="deb"))
    offered = files(task, outputs)
    assert list(offered)[:4] == ["deb.ipxe", "deb.linux", "deb.initrd", "deb.efi"]
    script = task.path(offered["deb.ipxe"]).read_text()
    assert script.startswith("#!ipxe\nkernel deb.linux initrd=deb.initrd kbuild.layers=")
    assert "kbuild.disk=http://10.0.0.1/os\n" in script
    image = task.path(offered["deb.efi"]).read_bytes()
    assert "kbuild.disk=http://10.0.0.1/os" in cmdline(image)
    assert set(list(offered)[4:]) == {one.partition(":")[0] for one in cmdline(image)[0][14:].split(",")}
    without, _ = made(store, Netboot(), NetbootSpec(image="os"))
    offered = files(task, without)
    assert not any(title.endswith(".efi") for title in offered)
    assert "kbuild.disk=${cwduri}\n" in task.path(offered["os.ipxe"]).read_text()


@pytest.mark.parametrize("url", ["https://x/y", "x", "http:///", "http://a b"])
def test_an_address_the_initrd_cannot_fetch_from_is_told(url: str) -> None:
    check = infos(NetbootSpec)["url"].check
    assert check is not None and "no http:// address" in check(url)


def test_an_iso_has_layers_and_both_ways_to_start(store: Store, tmp_path: Path) -> None:
    outputs, task = made(store, Iso(), IsoSpec(image="os"))
    image = task.path(outputs["iso"])
    there = extracted(image, tmp_path / "both")
    assert {"boot/linux", "boot/initrd", "boot/grub/core.img", "boot/grub/grub.cfg", "boot/kbuild"} <= set(
        there
    )
    assert len([path for path in there if path.startswith("layers/")]) == 3
    label = re.search(rb"kbuild.disk=LABEL=(\S+)", there["boot/grub/grub.cfg"])[1].decode()
    told = xorriso(image, "-toc", "-report_el_torito", "plain", "-report_system_area", "plain")
    assert f", {label}\n" in told
    assert "El Torito img opts :   1  boot-info-table grub2-boot-info" in told, (
        "it knows its sum and its place"
    )
    assert "MBR protective-msdos-label grub2-mbr" in told
    assert re.findall(r"GPT partname local : +\d +(.*)", told) == ["iso9660", "esp"]
    start = int(re.search(r"GPT start and size : +2 +(\d+)", told)[1])
    read = [peer("mtype", "mtools"), "-i", f"{image}@@{start * 512}", "::EFI/BOOT/BOOTX64.EFI"]
    kernel = subprocess.run(read, check=True, capture_output=True).stdout
    assert f"kbuild.disk=LABEL={label}" in cmdline(kernel)


def test_an_iso_for_uefi_alone_has_no_grub(store: Store, tmp_path: Path) -> None:
    outputs, task = made(store, Iso(), IsoSpec(image="os", bios=False))
    image = task.path(outputs["iso"])
    assert {path.partition("/")[0] for path in extracted(image, tmp_path / "uefi")} == {"layers"}
    told = xorriso(image, "-report_el_torito", "plain")
    assert re.findall(r"El Torito boot img : +\d +(\w+)", told) == ["UEFI"]
    assert Iso().tools(task.spec) == ("image", "boot")


def test_layers_that_change_leave_grub_as_it_is(store: Store) -> None:
    _, task = made(store, Iso(), IsoSpec(image="os"))
    executed = len(task.actions)
    other = [layer(store, content) for content in (BASE, KERNEL, {"etc": None, "etc/motd": b"edited\n"})]
    listed = [
        {"name": str(n), "layer": one.layer.json(), "index": one.index.json()} for n, one in enumerate(other)
    ]
    document = store.cas.put_bytes(dumps({**EMPTY, "layers": listed}))
    task.inputs = {"image": (Input("os", "image", {"image": document}),)}
    Iso().build(task)
    assert [action.outputs for action in task.actions[executed:]] == [("layer",)], "the new layer's boot form"


def test_a_bios_disk_starts_with_grub(store: Store, tmp_path: Path) -> None:
    outputs, task = made(store, Disk(), DiskSpec(image="os", firmware="both", cmdline=("it's", "a$b")))
    disk = task.path(outputs["disk"])
    with disk.open("rb") as file:
        sector = file.read(512)
        file.seek(1024 + 32)
        (first,) = struct.unpack("<Q", file.read(8))
        file.seek(first * 512)
        core = file.read(len(CORE))
    assert struct.unpack_from("<Q", sector, 0x5C) == (first,)
    assert sector[510:] == b"\x55\xaa" and sector[450] == 0xEE
    assert struct.unpack_from("<Q", core, 500) == (first + 1,)
    assert core[512:] == CORE[512:]
    read = [peer("mtype", "mtools"), "-i", f"{disk}@@2M"]
    shown = {
        path: subprocess.run([*read, f"::{path}"], check=True, capture_output=True).stdout
        for path in (
            "boot/grub/grub.cfg",
            "boot/grub/grubenv",
            "boot/entries/os-1.cfg",
            "EFI/Linux/os-1+3.efi",
        )
    }
    assert b"save_env" in shown["boot/grub/grub.cfg"]
    assert len(shown["boot/grub/grubenv"]) == 1024
    told = shown["boot/entries/os-1.cfg"]
    assert b"it'\\''s a$b'\n" in told
    kernel = shown["EFI/Linux/os-1+3.efi"]
    assert kernel == task.path(outputs["uki"]).read_bytes()
    at, count = map(int, re.search(rb"set initrd=(\d+)\+(\d+)", told).groups())
    packed = uki.section(kernel, ".initrd")
    assert kernel[at * 512 : (at + count) * 512] == packed + bytes(-len(packed) % 512)
    told = subprocess.run(
        [peer("sgdisk", "gdisk"), "--verify", disk], capture_output=True, text=True, check=True
    )
    assert "No problems found" in told.stdout


def test_a_bios_does_not_know_large_sectors() -> None:
    from kairosbuild.recipe.declaration import Declaration

    spec = {"firmware": "bios", "sector_size": "4096", "partitions": [], "size": 0}
    assert [one[0] for one in Disk().check("d", Declaration("d", "disk", spec), {})] == ["firmware"]


def test_a_single_root_is_what_the_layers_show(store: Store) -> None:
    outputs, task = made(store, Disk(), DiskSpec(image="os", root="single"))
    told = cmdline(task.path(outputs["uki"]).read_bytes())
    assert "," not in told[0]
    tree, task = made(
        store, Rootfs(), RootfsSpec(image="os", format="tar"), BASE, KERNEL, {"etc/.wh.motd": b""}
    )
    with tarfile.open(task.path(tree["file"])) as tar:
        names = set(tar.getnames())
    assert "usr/lib/os-release" in names and "etc/motd" not in names


def test_an_erofs_says_its_root_hash(store: Store) -> None:
    outputs, task = made(store, Rootfs(), RootfsSpec(image="os"))
    notes = loads(task.path(outputs["artifact"]).read_bytes())["annotations"]
    verify = [peer("veritysetup", "cryptsetup-bin"), "verify", f"--hash-offset={notes['hash-offset']}"]
    subprocess.run([*verify, *[task.path(outputs["file"])] * 2, notes["root-hash"]], check=True)


# -- extensions ----------------------------------------------------------------------------------

TOOL: Content = {"usr/bin/tool": b"#!/bin/sh\n", "var/lib/db": b"state"}


def extension(
    store: Store, kind: Any, *layers: Content, image: bool = False, keys: Path | None = None
) -> tuple[Outputs, BootTask]:
    signs = VeritySignSpec(certificate="db.crt", key=str(keys / "db.key")) if keys else None
    spec = kind.Spec(layers=("t",), entry="tool", sign=signs)
    sources = {"sign.certificate": keys / "public/db.crt"} if keys else {}
    task = BootTask(store, spec, play, sources=sources)
    task.inputs = {"layers": tuple(node(store, f"l{n}", content) for n, content in enumerate(layers))}
    if image:
        ref = layer(store, BASE)
        listed = [{"name": "b", "layer": ref.layer.json(), "index": ref.index.json()}]
        document = store.cas.put_bytes(dumps({**EMPTY, "layers": listed}))
        task.inputs = {**task.inputs, "image": (Input("os", "image", {"image": document}),)}
    return kind.build(task), task


def packed(task: BootTask) -> dict[str, bytes]:
    """What went into the extension's filesystem."""
    with tarfile.open(task.path(task.actions[-1].inputs["layer"])) as tar:
        return {one.name: handle.read() for one in tar if (handle := tar.extractfile(one))}


def test_an_extension_holds_its_folders_and_what_it_fits(store: Store) -> None:
    _, task = extension(store, Sysext(), TOOL)
    release = "usr/lib/extension-release.d/extension-release.tool"
    assert packed(task) == {"usr/bin/tool": b"#!/bin/sh\n", release: b"ID=_any\nARCHITECTURE=x86-64\n"}
    assert any("/var" in note for note in task.notes)
    _, task = extension(store, Sysext(), TOOL, image=True)
    assert packed(task)[release] == b"ID=test\nARCHITECTURE=x86-64\n"
    _, task = extension(store, Confext(), SITE)
    assert set(packed(task)) == {"etc/motd", "etc/extension-release.d/extension-release.tool"}


def test_an_extension_is_a_disk_with_a_verity_partition(store: Store, tmp_path: Path) -> None:
    outputs, task = extension(store, Sysext(), TOOL)
    image = task.path(outputs["file"])
    dump = subprocess.run(
        [peer("sfdisk", "fdisk"), "-d", image], capture_output=True, text=True, check=True
    ).stdout
    root_hash = loads(task.path(outputs["artifact"]).read_bytes())["annotations"]["root-hash"]
    assert "type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" in dump
    assert "type=2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5" in dump
    halves = (root_hash[:32], root_hash[32:])
    assert [
        line.partition("uuid=")[2][:36].replace("-", "").lower()
        for line in dump.splitlines()
        if "uuid=" in line
    ] == [*halves]
    parts = [tmp_path / str(number) for number in range(2)]
    for number, part in enumerate(parts):
        part.write_bytes(partition(image, number))
    subprocess.run([peer("veritysetup", "cryptsetup-bin"), "verify", *parts, root_hash], check=True)


def partition(image: Path, number: int) -> bytes:
    with image.open("rb") as file:
        file.seek(1024 + 128 * number + 32)
        first, last = struct.unpack("<QQ", file.read(16))
        file.seek(first * 512)
        return file.read((last - first + 1) * 512)


def test_a_signed_extension_has_its_root_hash_signed_as_systemd_verifies_it(
    store: Store, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    assert main(["keys", "new", str(keys)]) == 0
    outputs, task = extension(store, Sysext(), TOOL, keys=keys)
    said = json.loads(partition(task.path(outputs["file"]), 2).rstrip(b"\0"))
    root_hash = loads(task.path(outputs["artifact"]).read_bytes())["annotations"]["root-hash"]
    assert said["rootHash"] == root_hash
    (tmp_path / "signature").write_bytes(base64.b64decode(said["signature"], validate=True))
    (tmp_path / "hash").write_text(root_hash)
    signed = ["-inform", "DER", "-in", tmp_path / "signature", "-content", tmp_path / "hash", "-binary"]
    known = ["-nointern", "-noverify", "-certfile", keys / "public/db.crt", "-out", tmp_path / "out"]
    subprocess.run(["openssl", "smime", "-verify", *signed, *known], check=True, capture_output=True)
    assert b"PRIVATE" not in task.path(outputs["file"]).read_bytes()


def test_an_extension_names_its_kernels_and_has_its_units_noticed(store: Store) -> None:
    content: Content = {
        "usr/lib/modules/6.1/extra/a.ko.xz": b"",
        "usr/lib/systemd/system/a.service": b"",
        "usr/lib/modules/6.2/modules.dep": b"",
    }
    outputs, task = extension(store, Sysext(), content)
    assert loads(task.path(outputs["artifact"]).read_bytes())["annotations"]["kernels"] == "6.1"
    said = packed(task)["usr/lib/extension-release.d/extension-release.tool"]
    assert said.endswith(b"EXTENSION_RELOAD_MANAGER=1\n")


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        (Sysext(), {"etc/x": b""}, "extension-empty"),
        (Confext(), TOOL, "extension-empty"),
        (Sysext(), {"usr/bin/a": b"", "usr/bin/.wh.b": b""}, "extension-whiteout"),
    ],
)
def test_what_no_extension_can_be(store: Store, kind: Any, content: Content, reason: str) -> None:
    with pytest.raises(KbuildError) as caught:
        extension(store, kind, content)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (Uki(), UkiSpec(image="os")),
        (Iso(), IsoSpec(image="os")),
        (Netboot(), NetbootSpec(image="os")),
        (Rootfs(), RootfsSpec(image="os", format="tar")),
        (Disk(), DiskSpec(image="os", firmware="both")),
    ],
)
def test_equal_inputs_make_equal_artifacts(store: Store, tmp_path: Path, kind: Any, spec: Any) -> None:
    first, _ = made(store, kind, spec)
    again, _ = made(Store(tmp_path / "other"), kind, spec)
    assert first == again
