"""Machines in QEMU: upgraded from a registry, rolled back, given bad images, cut off from power."""

import json
import os
from pathlib import Path

import pytest
from fleet import Fleet, kept, online
from vm import Vm, running

pytestmark = pytest.mark.slow

ALL = os.environ.get("KBUILD_MACHINES") == "all"
CUTS = int(os.environ.get("KBUILD_POWER_CUTS", "1"))
FILES = "for d in etc var home root opt srv var/lib/containers; do echo $d > /$d/mine; done; head -c 3000000 /dev/urandom > /var/lib/containers/data"
SUMS = "sha256sum /etc/mine /var/mine /home/mine /root/mine /opt/mine /srv/mine /var/lib/containers/mine /var/lib/containers/data"


def status(vm: Vm) -> dict:
    return json.loads(vm.ok("kbuild-node status --json"))


def test_upgrade_and_rollback_keep_what_is_persistent(fleet: Fleet, tmp_path: Path) -> None:
    reference = fleet.publish("b", v="2")
    with running(fleet.machine(tmp_path)) as vm:
        kept(vm, "1", 1)
        first = status(vm)
        assert first["running"]["blessed"]
        assert first["recovery"]["entry"] == "recovery"
        assert int(vm.ok("stat -f -c %b /run/kbuild/persistent")) * 4096 > 900 << 20, "it has grown"
        vm.ok(FILES)
        sums = vm.ok(SUMS)
        online(vm)
        said = vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
        fetched, whole = (int(word) for word in said.split("; ")[-1].split() if word.isdigit())
        assert fetched < whole / 4, said
        assert status(vm)["next"]["entry"] == "os-2"
        vm.sh("sync; reboot")
        kept(vm, "2", 2)
        second = status(vm)
        assert second["running"]["manifest"].startswith("sha256:")
        assert second["running"]["image"] != first["running"]["image"] == second["fallback"]["image"]
        assert vm.ok(SUMS) == sums
        assert vm.ok("cat /sys/block/dm-*/ro | sort -u") == "1"
        vm.ok("kbuild-node rollback")
        vm.sh("sync; reboot")
        kept(vm, "1", 3)
        assert status(vm)["fallback"]["image"] == second["running"]["image"]
        assert vm.ok(SUMS) == sums
        peak = vm.ok("grep -h VmHWM /proc/$(pidof loader | cut -d' ' -f1)/status || true")
        assert vm.starts() == 3, peak
