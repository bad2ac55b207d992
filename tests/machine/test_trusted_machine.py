"""Machines under Secure Boot with keys of their own: enrolled, encrypted by the TPM, extended, upgraded, refused."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import CONFIG, FILES, SUMS, kept, online, status
from peers import peer
from trusted import Trusted, TrustedVm
from vm import NETWORK, running

pytestmark = pytest.mark.slow
ALL = os.environ.get("KBUILD_MACHINES") == "all"
KEY = r"[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}"


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trusted]:
    from debian_registry import started

    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        yield Trusted(tmp_path_factory.mktemp("trusted"), host)


def add(vm: TrustedVm, reference: str) -> tuple[int, str]:
    return vm.sh(f"kbuild-node extension add --plain-http {reference}", 300)


def test_it_enrols_its_keys_encrypts_what_it_keeps_and_survives_an_upgrade(
    trusted: Trusted, tmp_path: Path
) -> None:
    extensions, upgrade = trusted.extensions(), trusted.publish("b", v="2")
    foreign = trusted.publish("foreign", v="9", cert="other")
    with running(trusted.trusted(tmp_path), keep=True) as vm:
        vm.wait("Custom Secure Boot keys successfully enrolled, rebooting")
        kept(vm, "1", 1)
        assert "secureboot: Secure boot enabled" in vm.console()
        assert "Kernel is locked down from EFI Secure Boot" in vm.console()
        first = vm.encryption()
        assert (first["encrypted"], first["device"]) == (True, "/dev/mapper/kbuild-state")
        assert re.fullmatch(KEY, first["recovery_key"])
        vm.ok(FILES)
        sums = vm.ok(SUMS)

        online(vm)
        assert add(vm, f"{extensions}-ext")[0] == 0
        assert add(vm, f"{extensions}-conf")[0] == 0
        assert vm.ok("tool; cat /etc/told") == "overlaid\nby a confext"
        code, said = add(vm, f"{extensions}-wrong")
        assert (code, "modules of kernel 5.4.0-other" in said) == (2, True), said
        code, said = add(vm, f"{extensions}-strange")
        assert (code, "cannot be merged" in said) == (1, True), said
        listed = {one["name"]: one["merged"] for one in vm.asked("extension list")}
        assert listed == {"tool": True, "told": True}
        signed = "dmsetup table | grep -c 'verity.* root_hash_sig_key_desc'"
        assert vm.ok(signed) == "2", "the kernel held both to their signatures"

        code, said = vm.sh(f"kbuild-node upgrade --plain-http {foreign}", 600)
        assert (code, "no certificate in its db has signed it" in said) == (2, True), said
        vm.ok(f"kbuild-node upgrade --plain-http {upgrade}", 600)
        vm.sh("sync; reboot")
        kept(vm, "2", 2)
        assert vm.console().count("secureboot: Secure boot enabled") == 2
        assert vm.encryption() == first
        assert vm.ok(SUMS) == sums
        assert vm.ok("tool; cat /etc/told") == "overlaid\nby a confext"
        assert int(vm.ok("stat -f -c %b /run/kbuild/persistent")) * 4096 > 700 << 20, "it has grown"
        if ALL:
            removed(vm)
    if ALL:
        recovers(tmp_path, first["recovery_key"])
    (tmp_path / "disk.raw").unlink()


def removed(vm: TrustedVm) -> None:
    """Extensions go at once, and so does the recovery key when asked."""
    vm.ok("kbuild-node extension remove told && kbuild-node extension remove tool")
    assert vm.sh("tool")[0] == 127
    assert vm.sh("cat /etc/told")[0] == 1
    assert vm.asked("extension list") == []
    vm.ok("kbuild-node encryption --forget")
    assert vm.encryption()["recovery_key"] == ""


def recovers(folder: Path, key: str) -> None:
    """The recovery key opens the partition, another one does not; there is no third way."""
    rows = subprocess.run(
        [peer("sfdisk", "fdisk"), "-d", folder / "disk.raw"], capture_output=True, text=True, check=True
    ).stdout
    start = int(re.findall(r"start= *(\d+),.*name=\"persistent\"", rows)[0])
    with (folder / "disk.raw").open("rb") as disk, (folder / "luks").open("wb") as out:
        disk.seek(start * 512)
        out.write(disk.read(32 << 20))
    tool = peer("cryptsetup", "cryptsetup-bin")
    shown = subprocess.run(
        [tool, "luksDump", folder / "luks"], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"^  (\d+): luks2$", shown, re.M) == ["1", "2"], "TPM and recovery key"
    assert re.findall(r"systemd-(\w+)$", shown, re.M) == ["tpm2", "recovery"]
    for given, opens in ((key, True), (key[::-1], False)):
        words = [
            tool,
            "open",
            "--test-passphrase",
            "--key-file=-",
            "--disable-external-tokens",
            folder / "luks",
        ]
        done = subprocess.run(words, input=given.encode(), capture_output=True, check=False)
        assert (done.returncode == 0) == opens, done.stderr


if ALL:  # a dozen starts, with minutes in which somebody could type a key

    def test_a_live_medium_installs_a_machine_that_encrypts_and_has_its_bundles(
        trusted: Trusted, tmp_path: Path
    ) -> None:
        bundle = f"{trusted.extensions()}-ext"
        config = f"{CONFIG}bundles: [{{targets: [{bundle}]}}]\nruncmd: [{NETWORK!r}]\n"
        with running(trusted.installing(tmp_path, config)) as vm:
            vm.wait("kbuild-node: installed to /dev/vda", 900)
            vm.wait("encrypting the persistent filesystem", 600)
            kept(vm, "1", 2)
            assert vm.ok("cat /etc/hostname /etc/told") == "installed\nby the configuration"
            assert vm.ok("tool") == "overlaid"
            key = vm.encryption()["recovery_key"]
            assert re.fullmatch(KEY, key)
            vm.ok(FILES)
            sums = vm.ok(SUMS)
            vm.sh("sync; reboot")
            kept(vm, "1", 3)
            assert (vm.ok(SUMS), vm.ok("tool")) == (sums, "overlaid")
            assert vm.encryption() == {**vm.encryption(), "encrypted": True, "recovery_key": key}
            vm.off()
            recovers(tmp_path, key)

    def test_an_image_of_another_pcr_key_cannot_unlock_and_is_left(trusted: Trusted, tmp_path: Path) -> None:
        other = trusted.publish("c", v="3", pcr="other")
        with running(trusted.trusted(tmp_path)) as vm:
            kept(vm, "1", 1)
            vm.ok(FILES)
            sums = vm.ok(SUMS)
            online(vm)
            vm.ok(f"kbuild-node upgrade --plain-http {other}", 600)
            vm.sh("sync; reboot")
            kept(vm, "1", 5)
            (failed,) = status(vm)["failed"]
            assert "cannot be unlocked: the TPM does not open it to this image" in failed["why"]
            assert vm.console().count("Recovery key (within") == 3
            assert vm.ok(SUMS) == sums
