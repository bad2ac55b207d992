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
    spans, dice, found, sums = Spans(), random.Random(), [], ""
    if CUTS > 1:
        with running(frozen.thawed(tmp_path / "whole")) as vm:
            spans = measured(vm, reference)
            print(f"entered after {spans.entered:.1f} s, kept after {spans.kept:.1f} s", flush=True)
    for number in range(CUTS):
        with running(frozen.thawed(tmp_path / f"{number}")) as vm:
            moment, sums = spans.moment(dice), sums or vm.ok(SUMS)
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


def at_the_last_phase(fleet: Fleet, folder: Path) -> Vm:
    """A live system, frozen when it has written the layers and begins with recovery."""
    vm = fleet.live(folder, "#cloud-config\n{}\n")
    with running(vm, keep=True):
        vm.ready()
        installing(vm)
        vm.wait("writing recovery", 600)
        vm.freeze()
    return vm


def installed(vm: Vm, folder: Path) -> str:
    """What there is of a partition table: `nothing`, and firmware goes on to the CD; its `copy`, that firmware restores;
    or `all`, and then all of the system is there."""
    with vm.disk.open("rb") as file:
        head = file.read(1024)
        file.seek(-512, os.SEEK_END)
        tables = head[512:520], file.read(8)
    if tables[0] != b"EFI PART":
        assert head[510:512] != b"\x55\xaa", "a BIOS would start it"
        return "copy" if tables[1] == b"EFI PART" else "nothing"
    disk = CutDisk(vm, folder)
    machine = disk.machine()
    assert [one.label for one in machine.entries.all()] == ["os-1", "recovery"]
    assert machine.layers.damaged(machine.entries.all()[0].kernel.layers) == []
    assert "hostname: installed" in (disk.kept / "config.yaml").read_text()
    shutil.rmtree(folder)
    return "all"


def starts(vm: Vm, *, installed: bool) -> None:
    """It does as it should: the disk's system, or the CD's, which installs again."""
    behind = len(vm.console())
    vm.on()
    if not installed:
        vm.wait("verified layers", 600, after=behind)
        vm.ready()
        assert "kbuild.disk=LABEL=KBUILD_" in vm.ok("cat /proc/cmdline")
        installing(vm)
        vm.wait(INSTALLED, 600, after=behind)
        vm.off()
        vm.on()
    vm.wait("kbuild-node: healthy", 900, after=behind)
    vm.ready()
    assert vm.ok("cat /etc/hostname /usr/lib/version") == "installed\n1"
    assert status(vm, "--verify")["running"]["damaged"] == []


if CUTS > 1:

    def test_a_power_cut_at_the_end_of_an_installation_is_one_before_or_after_it(
        fleet: Fleet, tmp_path: Path
    ) -> None:
        """The partition table is the last thing written; every fifth machine is started as well."""
        frozen, dice, found = at_the_last_phase(fleet, tmp_path / "live"), random.Random(), []
        with running(frozen.thawed(tmp_path / "whole")) as vm:
            begun = time.monotonic()
            vm.wait(INSTALLED, 600)
            length = time.monotonic() - begun + 0.5
        print(f"the last phase takes {length:.1f} s", flush=True)
        for number in range(CUTS):
            with running(frozen.thawed(tmp_path / f"{number}")) as vm:
                moment = dice.uniform(0, length) if number % 2 else dice.uniform(length - 1.5, length)
                time.sleep(moment)
                vm.off()
                found.append(installed(vm, tmp_path / "cut"))
                print(f"cut {number} {moment:.1f} s into it: {found[-1]}", flush=True)
                if number % STARTED == 0 or found[-1] == "copy":
                    starts(vm, installed=found[-1] != "nothing")
        if CUTS >= 20:
            assert {"nothing", "all"} <= set(found), "it was cut before and after the end"
