"""What a machine refuses, with its system untouched: what was tampered with, breaks off, is not signed, or has no room."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fault_server import FaultServer
from fleet import RECIPE, Fleet, kept, status
from vm import Vm, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]
BLOCK = 4096
DISK, ESP = "/run/kbuild/disk", "/run/kbuild/esp"
SETTINGS = "/usr/lib/kbuild/settings.json"


@pytest.fixture(scope="module")
def registry() -> Iterator[FaultServer]:
    with FaultServer() as found:
        yield found


def flipped(data: bytes) -> bytes:
    """A bit of what is no list of hashes and no head of a file."""
    return data[:-1] + bytes([data[-1] ^ 1]) if len(data) >= BLOCK else data


FAULTS = {
    "manifest": ("GET .*/manifests/sha256:", {"change": lambda data: data + b" "}, "has the digest"),
    "blobs": (
        "GET .*/blobs/",
        {"change": flipped},
        "is another layer|is not its own|is something else|is not what its digest",
    ),
    "half-way": ("GET .*/blobs/", {"cut": 1000}, "ended early|broke off"),
}
"""Which requests go wrong, how, and what is said of it."""


def refused(vm: Vm, reference: str, said: str) -> None:
    """An upgrade that fails and says why, and a machine that is as before, each of its layers too."""
    before = status(vm, "--verify")
    files = vm.ok(f"ls {DISK} {ESP}/EFI/Linux")
    code, told = vm.sh(f"kbuild-node upgrade --plain-http {reference}", 600)
    assert code, told
    assert [one for one in said.split("|") if one in told], told
    after = status(vm, "--verify")
    assert {**after, "free": 0} == {**before, "free": 0}
    assert after["running"]["damaged"] == []
    assert [
        one for one in vm.ok(f"ls {DISK} {ESP}/EFI/Linux").split() if not one.endswith(".part")
    ] == files.split()


def filled(vm: Vm, place: str, device: str) -> None:
    vm.ok(f"mount -o remount,rw {device} {place}")
    vm.sh(f"dd if=/dev/zero of={place}/filler bs=1M; sync; mount -o remount,ro {device} {place}")


def emptied(vm: Vm, place: str, device: str) -> None:
    vm.ok(
        f"mount -o remount,rw {device} {place} && rm {place}/filler && sync && mount -o remount,ro {device} {place}"
    )


def keys(folder: Path, *names: str) -> None:
    for name in names:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, *plain))
        (folder / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        )


def signed(fleet: Fleet, key: str, v: str) -> str:
    """An image of this version, signed."""
    text = RECIPE.replace('to: "${at}"', f'to: "${{at}}", sign: {key}.key')
    (fleet.folder / f"{key}.yaml").write_text(text)
    if (lock := fleet.folder / "machine.lock").exists():
        shutil.copyfile(lock, fleet.folder / f"{key}.lock")
    return fleet.publish(key, f"{key}.yaml", v=v)


if os.environ.get("KBUILD_MACHINES") == "all":

    def test_what_is_refused_leaves_the_machine_as_it_was(
        fleet: Fleet, registry: FaultServer, tmp_path: Path
    ) -> None:
        reference = fleet.publish("b", registry=registry.host, v="2")
        with running(fleet.ready().thawed(tmp_path)) as vm:
            for match, how, said in FAULTS.values():
                registry.fault(match, times=10_000, **how)
                refused(vm, reference, said)
                registry.faults.clear()
            esp = vm.ok(f"findmnt -no SOURCE {ESP}")
            for place, device, said in (
                (DISK, vm.ok(f"findmnt -no SOURCE {DISK}"), "are free"),
                (ESP, esp, "MiB free"),
            ):
                filled(vm, place, device)
                refused(vm, reference, said)
                emptied(vm, place, device)
            vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
            vm.sh("sync; reboot")
            kept(vm, "2", 3)

    def test_what_no_key_of_the_image_has_signed_is_refused(fleet: Fleet, tmp_path: Path) -> None:
        keys(fleet.folder, "right", "wrong")
        plain, wrong, right = (
            fleet.publish("b", v="2"),
            signed(fleet, "wrong", "3"),
            signed(fleet, "right", "4"),
        )
        with running(fleet.ready().thawed(tmp_path)) as vm:
            pem = (fleet.folder / "right.pub").read_text().replace("\n", "\\\\n")
            vm.ok(f'sed \'s|"keys": *\\[\\]|"keys":["{pem}"]|\' {SETTINGS} > /run/settings')
            vm.ok(f"grep -q BEGIN /run/settings && mount --bind /run/settings {SETTINGS}")
            refused(vm, plain, "signed")
            refused(vm, wrong, "signed")
            vm.ok(f"kbuild-node upgrade --plain-http {right}", 600)
            vm.sh("sync; reboot")
            kept(vm, "4", 3)
