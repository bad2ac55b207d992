"""Kind boot: what is published for machines, and a disk that takes it as it is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from boot_task import BASE, KERNEL, BootTask
from isos import extracted
from peers import peer
from test_disk import SITE, image, play

from kairosbuild.artifacts.partitions import PartitionSpec
from kairosbuild.boot import uki
from kairosbuild.core.canonical import loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.boot import Boot, BootSpec, EncryptSpec, _folders, _places
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.kinds.iso import Iso, IsoSpec
from kairosbuild.kinds.netboot import Netboot, NetbootSpec
from kairosbuild.node import gpt, install, netboot
from kairosbuild.node.problem import Problem
from kairosbuild.node.uki import argument, read
from kairosbuild.oci.configuration import image_id
from kairosbuild.recipe.declaration import Declaration
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


def play_grub(action: Action) -> Mapping[str, bytes]:
    """GRUB's images are played too."""
    if "core" in action.outputs:
        core = bytes(512) + b"the rest of GRUB" * 299
        return {"core": core, "boot": b"\xeb" + bytes(511), "hybrid": bytes(512)}
    return play(action)


def over_boot(store: Store, kind: Any, spec: Any) -> tuple[Outputs, BootTask]:
    outputs, _ = built(store)
    task = BootTask(store, spec, play_grub)
    task.inputs = {"image": (Input("boot", "boot", outputs),)}
    return kind.build(task), task


def test_an_iso_of_it_has_what_an_installation_takes(store: Store, tmp_path: Path) -> None:
    outputs, task = over_boot(store, Iso(), IsoSpec(image="boot"))
    there = set(extracted(task.path(outputs["iso"]), tmp_path / "both"))
    names = {path.removeprefix("install/") for path in there if path.startswith("install/")}
    assert {"os.efi", "recovery.efi", "BOOTX64.EFI", "grub/core", "grub/sector"} < names
    assert {"grub/esp/boot/grub/grub.cfg", "grub/esp/boot/entries/os-1.cfg"} < names
    outputs, task = over_boot(store, Iso(), IsoSpec(image="boot", bios=False))
    assert not any("grub" in path for path in extracted(task.path(outputs["iso"]), tmp_path / "uefi"))


def test_a_machine_that_a_server_started_installs_what_its_command_line_names(
    store: Store, tmp_path: Path
) -> None:
    outputs, task = over_boot(store, Netboot(), NetbootSpec(image="boot"))
    server, place = tmp_path / "server", tmp_path / "run"
    server.mkdir()
    for one in loads(task.path(outputs["artifact"]).read_bytes())["files"]:
        (server / one["title"]).write_bytes(task.path(Blob(one["digest"], one["size"])).read_bytes())
    words = (server / "os.ipxe").read_text().splitlines()[1]
    with served(server) as url:
        cmdline = words.replace("${cwduri}", f"{url}/")
        place.mkdir()
        listed = argument(cmdline, "kbuild.layers").split(",")
        for name in [one.partition(":")[0] for one in listed]:
            (place / name).write_bytes((server / name).read_bytes())
        assert install.live(cmdline, place)
        medium = install.medium(cmdline, place)
        assert medium is not None and medium.grub is not None and medium.recovery is not None
        disk = tmp_path / "disk"
        disk.touch()
        os.truncate(disk, 1 << 30)
        install.install(disk, medium, "", tries=3, say=lambda text: None)
        changed = argument(cmdline, "kbuild.install")
        (server / changed).write_bytes(b"{}")
        with pytest.raises(Problem) as caught:
            install.medium(cmdline, place)
        assert caught.value.reason == "netboot-lied"
    with disk.open("rb") as file:
        sector = file.read(512)
        first = gpt.read(file).partitions[0]
        file.seek(first.first * 512)
        core = file.read(1024)
    assert (first.name, first.first) == ("bios-boot", 2048)
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,) and sector[510:] == b"\x55\xaa"
    assert core[512:].startswith(b"the rest of GRUB")
    listing = [peer("mdir", "mtools"), "-b", "-/", "-i", f"{disk}@@2M", "::"]
    shown = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    assert "::/boot/entries/os-1.cfg" in shown and "::/EFI/Linux/os-1+3.efi" in shown


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
def test_a_list_that_leads_outside_is_refused(tmp_path: Path, path: str) -> None:
    document = json.dumps({path: "0" * 64}).encode()
    name = hashlib.sha256(document).hexdigest()
    (tmp_path / name).write_bytes(document)
    with served(tmp_path) as url, pytest.raises(Problem) as caught:
        netboot.fetch(url, name, tmp_path / "into")
    assert caught.value.reason == "netboot-lied"


def test_what_is_kept_may_be_encrypted(store: Store) -> None:
    spec = EncryptSpec(recovery="keep", pcrs="7+14")
    outputs, task = built(store, persistent=("var",), encrypt=spec)
    assert "kbuild.encrypt=keep:7+14" in read(task.path(outputs["uki"])).cmdline.split()
    other, _ = built(store, persistent=("var",))
    assert (
        loads(task.path(outputs["entry"]).read_bytes())["initrd"]
        != (loads(task.path(other["entry"]).read_bytes())["initrd"])
    )
    kinds = ("esp", "layers", "persistent")
    room = tuple(PartitionSpec(type=kind) for kind in kinds)
    named = tuple(PartitionSpec(type=kind, name="mine" if kind == "persistent" else "") for kind in kinds)
    small = (*room[:2], PartitionSpec(type="persistent", size=32 << 20))
    for partitions, reason in (
        (room, ""),
        (room[:2], "partition-missing"),
        (named, "partition-missing"),
        (small, "partition-size"),
    ):
        disk = BootTask(store, DiskSpec(image="boot", partitions=partitions), play)
        disk.inputs = {"image": (Input("boot", "boot", outputs),)}
        if not reason:
            assert Disk().build(disk)
            continue
        with pytest.raises(InputError) as caught:
            Disk().build(disk)
        assert caught.value.reason == reason


def test_encryption_wants_a_policy_and_something_to_keep() -> None:
    spec = {"encrypt": {"recovery": "print", "pcrs": "7"}, "persistent": [], "binds": []}
    said = Boot().check("b", Declaration("b", "boot", spec, {"initrd": ("mine",)}), {})
    assert [message.split()[-1] for _, message, _ in said] == ["policy", "encrypted", "with"]
    good = Declaration("b", "boot", {**spec, "binds": ["var/x"]}, {}, {"sign.pcr_public": "pcr.pub"})
    assert list(Boot().check("b", good, {})) == []
    assert list(Boot().check("b", Declaration("b", "boot", {**spec, "encrypt": None}), {})) == []


def test_places_and_binds_are_those_there_are() -> None:
    assert _places(["etc", "var"]) == ""
    assert "did you mean 'home'" in _places(["homes"])
    assert _folders(["var/lib/containers"]) == ""
    for bad in ("var", "usr/lib/x", "var/../x", "/var/x", "var/a b", "var/a,b"):
        assert _folders([bad]), bad
