"""A machine in QEMU whose power is cut while it upgrades, and at the end of its installation.

Each cut begins with the same frozen machine. `KBUILD_POWER_CUTS` says how many there are.
"""

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import SUMS, Fleet, kept, online, status
from vm import Vm, running

pytestmark = pytest.mark.slow

CUTS = int(os.environ.get("KBUILD_POWER_CUTS", "1"))
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
            vm.on()
            vm.healthy(vm.starts() + 1)
            found.append(vm.ok("cat /usr/lib/version"))
            print(f"cut {number} after {moment:.1f} s: {found[-1]}", flush=True)
            assert found[-1] in ("1", "2"), f"cut off after {moment:.1f} s"
            assert vm.ok(SUMS) == sums
            asked_again(vm, reference, found[-1], start=CUTS > 1 and number % 10 == 0)
    if CUTS >= 20:
        assert set(found) == {"1", "2"}, "it was cut before and after the entry"


def asked_again(vm: Vm, reference: str, found: str, *, start: bool) -> None:
    """After a cut: nothing is damaged, and the upgrade finishes."""
    if found == "1":
        online(vm)
        vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
    known = status(vm, "--verify")
    assert known["running"]["damaged"] == known["next"]["damaged"] == []
    assert known["next"]["reference"] == reference
    if found == "1" and start:
        starts = vm.starts()
        vm.sh("sync; reboot")
        kept(vm, "2", starts + 1)


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
