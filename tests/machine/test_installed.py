"""Machines that a live medium or the network installed, unattended."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fleet import CONFIG, Fleet, kept, status, watched_over
from peers import peer
from vm import HOST, running

pytestmark = pytest.mark.slow


def test_a_live_medium_installs_itself(fleet: Fleet, tmp_path: Path) -> None:
    with running(fleet.ready().thawed(tmp_path)) as vm:
        assert vm.ok("cat /etc/hostname /etc/told") == "installed\nby the configuration"
        assert "ssh-ed25519 AAAA me" in vm.ok("cat /home/kairos/.ssh/authorized_keys")
        known = status(vm)
        assert (known["running"]["entry"], known["recovery"]["entry"]) == ("os-1", "recovery")
        assert known["running"]["blessed"]
        assert int(vm.ok("stat -f -c %b /run/kbuild/persistent")) * 4096 > 700 << 20, "it has grown"
        watched_over(vm)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """What a machine's network has under this address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()


def config_drive(folder: Path, config: str) -> tuple[str, ...]:
    """A small drive more, as clouds and hypervisors give their machines one."""
    image = folder / "cidata.img"
    subprocess.run(
        [peer("mkfs.fat", "dosfstools"), "-C", "-n", "CIDATA", image, "1024"], check=True, capture_output=True
    )
    copy = [peer("mcopy", "mtools"), "-i", image, "-", "::user-data"]
    subprocess.run(copy, input=config.encode(), check=True)
    drive = f"if=none,id=cidata,format=raw,readonly=on,file={image}"
    return "-drive", drive, "-device", "virtio-blk-pci,drive=cidata"


def test_a_machine_that_the_network_starts_installs_itself(fleet: Fleet, tmp_path: Path) -> None:
    """By a BIOS and iPXE, as a drive beside its disk tells it; what is then on the disk is started by GRUB."""
    with served(fleet.offered("#cloud-config\n{}\n")) as url:
        drive = config_drive(tmp_path, CONFIG)
        vm = fleet.blank(tmp_path, *drive, uefi=False, memory=2048, bootfile=f"{url}/os.ipxe")
        with running(vm):
            vm.wait("kbuild-node: installed to /dev/vda", 900)
            kept(vm, "1", 2)
            assert "kbuild: starting os-1" in vm.console()
            assert vm.ok("cat /etc/hostname /etc/told") == "installed\nby the configuration"
            assert "by the configuration" in vm.ok("cat /run/kbuild/persistent/config.yaml")
            known = status(vm)
            assert (known["running"]["entry"], known["recovery"]["entry"]) == ("os-1", "recovery")


if os.environ.get("KBUILD_MACHINES") == "all":

    def test_a_person_at_the_terminal_picks_the_disk(fleet: Fleet, tmp_path: Path) -> None:
        with running(fleet.live(tmp_path, "#cloud-config\n{}\n")) as vm:
            vm.ready()
            assert "/dev/vda  2 GiB" in vm.typed("kbuild-node install --reboot", "Install to which disk")
            assert "disks to install to: /dev/vda" in vm.typed("/dev/vdz", "hint: .*")
            vm.typed("kbuild-node install --reboot", "Install to which disk")
            vm.typed("/dev/vda", "kbuild-node: installed")
            kept(vm, "1", 2)
            assert status(vm)["running"]["entry"] == "os-1"
