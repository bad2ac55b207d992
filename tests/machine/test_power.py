"""A machine in QEMU whose power is cut while it upgrades."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from fleet import FILES, SUMS, Fleet, kept, online
from vm import running

pytestmark = pytest.mark.slow

CUTS = int(os.environ.get("KBUILD_POWER_CUTS", "1"))


def test_a_power_cut_at_any_moment_of_an_upgrade_leaves_a_whole_image(fleet: Fleet, tmp_path: Path) -> None:
    vm = fleet.machine(tmp_path)
    version, dice = "1", random.Random(int.from_bytes(os.urandom(4)))
    with running(vm):
        kept(vm, version, 1)
        vm.ok(FILES)
        sums = vm.ok(SUMS)
        for number in range(CUTS):
            wanted = f"cut-{number}"
            reference = fleet.publish(wanted, v=wanted)
            online(vm)
            vm.ok(f"(kbuild-node upgrade --plain-http {reference} --reboot > /dev/console 2>&1 &)")
            moment = dice.uniform(0, 60)
            time.sleep(moment)
            vm.off()
            vm.on()
            starts = vm.starts()
            vm.healthy(starts + 1)
            found = vm.ok("cat /usr/lib/version")
            assert found in (version, wanted), f"cut off after {moment:.1f} s"
            known = json.loads(vm.ok("kbuild-node status --json --verify", 600))
            assert known["running"]["damaged"] == []
            assert vm.ok(SUMS) == sums
            if found != wanted:
                online(vm)
                starts = vm.starts()
                vm.ok(f"kbuild-node upgrade --again --plain-http {reference}", 600)
                vm.sh("sync; reboot")
                kept(vm, wanted, starts + 1)
            version = wanted
