"""A machine in QEMU whose power is cut while it upgrades, and at the end of its installation.

Each cut begins with the same frozen machine. `KBUILD_POWER_CUTS` says how many there are.
"""

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cut_disk import CutDisk
from fleet import SUMS, Fleet, online, status
from vm import HOST, Vm, running

CUTS = int(os.environ.get("KBUILD_POWER_CUTS", "1"))
pytestmark = [pytest.mark.slow, *([pytest.mark.timeout(0)] if CUTS > 1 else [])]
STARTED = 5
"""Every so many machines are started after the cut."""
ENTERED, HEALTHY, INSTALLED = "is entered as os-2", "kbuild-node: healthy", "kbuild-node: installed"


@dataclass
class Spans:
    """How long an upgrade and the start of the new image took, when nothing was cut: until then, seconds."""

    entered: float = 12.0
    kept: float = 40.0

    def moment(self, dice: random.Random) -> float:
        """Most cuts while the upgrade is at work, the others while its image is started and kept."""
        upgrading = dice.random() < 0.7
        return dice.uniform(0, self.entered) if upgrading else dice.uniform(self.entered, self.kept)


def upgrading(vm: Vm, reference: str) -> None:
    vm.ok(f"(kbuild-node upgrade --plain-http {reference} --reboot > /dev/console 2>&1 &)")


def measured(vm: Vm, reference: str) -> Spans:
    """An upgrade that nothing cuts."""
    behind, begun = len(vm.console()), time.monotonic()
    upgrading(vm, reference)
    vm.wait(ENTERED, 600, after=behind)
    entered = time.monotonic() - begun
    vm.wait(HEALTHY, 900, after=behind)
    return Spans(entered, time.monotonic() - begun)


def test_a_power_cut_at_any_moment_of_an_upgrade_leaves_a_whole_image(fleet: Fleet, tmp_path: Path) -> None:
    """After every cut the disk is read, and the upgrade asked for again; every fifth machine is started as well."""
    reference, frozen = fleet.publish("b", v="2"), fleet.ready()
    spans, dice, found = Spans(), random.Random(int.from_bytes(os.urandom(4))), []
    if CUTS > 1:
        with running(frozen.thawed(tmp_path / "whole")) as vm:
            spans = measured(vm, reference)
            print(f"entered after {spans.entered:.1f} s, kept after {spans.kept:.1f} s", flush=True)
    for number in range(CUTS):
        with running(frozen.thawed(tmp_path / f"{number}")) as vm:
            moment, sums = spans.moment(dice), vm.ok(SUMS)
            upgrading(vm, reference)
            time.sleep(moment)
            vm.off()
            found.append(whole(vm, tmp_path / "cut", reference.replace(HOST, "127.0.0.1"), sums))
            print(f"cut {number} after {moment:.1f} s: {found[-1]} is next", flush=True)
            if number % STARTED == 0:
                vm.on()
                vm.healthy(vm.starts() + 1)
                assert vm.ok("cat /usr/lib/version") == found[-1]
                assert vm.ok(SUMS) == sums
                asked_again(vm, reference)
    if CUTS >= 20:
        assert set(found) == {"1", "2"}, "it was cut before and after the entry"


def whole(vm: Vm, folder: Path, reference: str, sums: str) -> str:
    """What the boot loader would start, "1" or "2", after all that could be started was found whole."""
    disk = CutDisk(vm, folder)
    machine, known = disk.machine(), disk.sums()
    first, *others = machine.entries.all()
    systems = [one for one in (first, *others) if not one.kernel.recovery]
    assert not first.exhausted
    assert not first.kernel.recovery
    for one in systems:
        assert machine.layers.damaged(one.kernel.layers) == [], one.label
    assert all(one in sums for one in known.values())
    after = disk.upgraded(reference)
    ahead = after.entries.all()[0]
    assert (ahead.label, after.layers.damaged(ahead.kernel.layers)) == ("os-2", [])
    shutil.rmtree(folder)
    return "2" if first.label == "os-2" else "1"


def asked_again(vm: Vm, reference: str) -> None:
    """On the machine itself, the same."""
    online(vm)
    vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
    known = status(vm, "--verify")
    assert known["running"]["damaged"] == known["next"]["damaged"] == []
    assert known["next"]["reference"] == reference


CONFIG = "#cloud-config\\nhostname: installed\\n"


def installing(vm: Vm) -> None:
    vm.ok(f"printf '{CONFIG}' > /tmp/config")
    vm.ok("(kbuild-node install --device /dev/vda --config /tmp/config > /dev/console 2>&1 &)")


if CUTS > 1:

    def test_a_power_cut_at_the_end_of_an_installation_is_one_before_or_after_it(
        fleet: Fleet, tmp_path: Path
    ) -> None:
        frozen, dice, found = fleet.live(tmp_path / "live", "#cloud-config\n{}\n"), random.Random(), []
        with running(frozen, keep=True):
            frozen.ready()
            frozen.freeze()
        with running(frozen.thawed(tmp_path / "whole")) as vm:
            installing(vm)
            vm.wait("writing recovery", 600)
            begun = time.monotonic()
            vm.wait(INSTALLED, 600)
            length = time.monotonic() - begun + 1
        for number in range(max(4, CUTS // 5)):
            with running(frozen.thawed(tmp_path / f"{number}")) as vm:
                installing(vm)
                vm.wait("writing recovery", 600)
                moment = dice.uniform(0, length)
                time.sleep(moment)
                vm.off()
                vm.on()
                vm.ready()
                found.append("CD" if "kbuild.disk=LABEL=KBUILD_" in vm.ok("cat /proc/cmdline") else "disk")
                print(f"cut {number} {moment:.1f} s into the last phase: from {found[-1]}", flush=True)
                if found[-1] == "CD":
                    behind = len(vm.console())
                    installing(vm)
                    vm.wait(INSTALLED, 600, after=behind)
                    vm.off()
                    vm.on()
                vm.healthy(vm.starts() + (0 if found[-1] == "disk" else 1))
                assert vm.ok("cat /etc/hostname /usr/lib/version") == "installed\n1"
                known = status(vm, "--verify")
                assert known["running"]["damaged"] == []
        assert found
