"""Machines in QEMU: upgraded from a registry, rolled back, given bad images."""

import os
import re
from pathlib import Path

import pytest
from fleet import CONFIG, FILES, SUMS, Fleet, kept, online, status, watched_over
from vm import Vm, running

ALL = os.environ.get("KBUILD_MACHINES") == "all"
pytestmark = [pytest.mark.slow, *([pytest.mark.timeout(0)] if ALL else [])]


WATCHED = (
    "/usr/lib/kbuild/lib/loader --library-path /usr/lib/kbuild/lib /usr/lib/kbuild/bin/python -I -S -B -c '"
    "import resource, sys; from kairosbuild.node.main import main; code = main(sys.argv[1:]); "
    'print("peak", resource.getrusage(0).ru_maxrss); sys.exit(code)\''
)
"""The machine's program, that says at the end how many KiB of memory it took."""


def upgraded_and_back(vm: Vm, reference: str, starts: int) -> None:
    """A healthy machine upgrades, keeps the new image, and goes back; what is persistent stays, but for a reset."""
    first, sums = status(vm), vm.ok(SUMS)
    said = vm.ok(f"{WATCHED} upgrade --plain-http {reference}", 600)
    fetched, whole = map(int, re.findall(r"; (\d+) of (\d+) bytes fetched", said)[0])
    assert fetched < whole / 100, said
    assert int(said.rpartition("peak ")[2]) < 64 << 10, said
    assert status(vm)["next"]["entry"] == "os-2"
    vm.sh("sync; reboot")
    kept(vm, "2", starts + 1)
    second = status(vm)
    assert second["running"]["manifest"].startswith("sha256:")
    assert second["running"]["image"] != first["running"]["image"] == second["fallback"]["image"]
    assert vm.ok(SUMS) == sums
    assert vm.ok("cat /sys/block/dm-*/ro | sort -u") == "1"
    vm.ok("kbuild-node rollback && kbuild-node reset --keep home --keep etc")
    vm.sh("sync; reboot")
    kept(vm, "1", starts + 2)
    assert status(vm)["fallback"]["image"] == second["running"]["image"]
    remain = [line for line in sums.splitlines() if re.search("/(etc|home)/", line)]
    assert vm.ok("sha256sum /etc/mine /home/mine").splitlines() == remain
    assert vm.sh("ls /root/mine /srv/mine /var/lib/containers/mine")[0] != 0


def test_upgrade_and_rollback_keep_what_is_persistent(fleet: Fleet, tmp_path: Path) -> None:
    reference = fleet.publish("b", v="2")
    with running(fleet.ready().thawed(tmp_path)) as vm:
        upgraded_and_back(vm, reference, 2)


BAD = {
    "missing layer": ({}, "is not on /dev/", "rm"),
    "damaged layer": ({}, "is damaged or gone", "dd if=/dev/zero bs=4096 count=1 conv=notrunc of="),
    "unhealthy": ({"healthy": "no", "patience": "100"}, "'grep -q yes /usr/lib/healthy' fails", ""),
    "panic": ({"more": "sleep 3; echo c > /proc/sysrq-trigger"}, "it (started|never)", ""),
    "hang": ({"more": "kill -ABRT 1; sleep 1000"}, "it started, but went down or hung", ""),
    "hang in the initrd": ({"recipe": "hooked.yaml"}, "it never came as far as this program", ""),
    "hang early": (
        {"early": "sleep 100000", "patience": "60"},
        "the system is initializing after 60 seconds, not done: .*early.service",
        "",
    ),
    "maintenance": (
        {"early": "exit 1", "patience": "60"},
        "the system is at a maintenance prompt after 60 seconds, failed: early.service",
        "",
    ),
}
"""What is wrong with an image: variables of the recipe, the reason told, what is done to its own layer."""


def left_after_three_tries(vm: Vm, fleet: Fleet, what: str, starts: int) -> None:
    """A healthy machine upgrades to a bad image, falls back by itself, says why, and does not try it again."""
    variables, reason, damage = BAD[what]
    reference = fleet.publish(what.replace(" ", "-"), v=what, **variables)
    sums = vm.ok(SUMS)
    vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
    known = status(vm)
    own = next(one for one in known["next"]["layers"] if one not in known["running"]["layers"])
    if damage:
        disk = "/run/kbuild/disk"
        vm.ok(f"mount -o remount,rw {disk} && {damage} {disk}/{own} && sync".replace("= ", "="))
    vm.sh("sync; reboot")
    kept(vm, "1", starts + 4)
    (failed,) = status(vm)["failed"]
    assert failed["image"] == known["next"]["image"]
    assert re.search(reason, failed["why"]), failed
    assert vm.ok(SUMS) == sums
    online(vm)
    code, said = vm.sh(f"kbuild-node upgrade --plain-http {reference}", 600)
    assert code == 2
    assert "was tried and failed" in said


@pytest.mark.parametrize("what", list(BAD) if ALL else ["missing layer"])
def test_a_bad_image_is_left_after_three_tries_and_not_tried_again(
    fleet: Fleet, tmp_path: Path, what: str
) -> None:
    with running(fleet.ready().thawed(tmp_path)) as vm:
        left_after_three_tries(vm, fleet, what, 2)


if ALL:  # some ten starts each

    def test_a_machine_that_a_bios_starts_does_the_same(fleet: Fleet, tmp_path: Path) -> None:
        reference = fleet.publish("b", v="2")
        with running(fleet.live(tmp_path, CONFIG, uefi=False)) as vm:
            vm.wait("kbuild-node: installed to /dev/vda", 900)
            kept(vm, "1", 2)
            vm.ok(FILES)
            online(vm)
            left_after_three_tries(vm, fleet, "panic", 2)
            upgraded_and_back(vm, reference, 6)
            vm.ok("kbuild-node recovery")
            vm.sh("sync; reboot")
            vm.wait(r"kbuild: starting recovery", 900)
            vm.ready()
            assert status(vm)["running"]["entry"] == "recovery"
            vm.sh("sync; reboot")
            kept(vm, "1", 10)

    def test_one_without_a_watchdog_in_hardware_is_restarted_by_its_kernel(
        fleet: Fleet, tmp_path: Path
    ) -> None:
        vm = fleet.machine(tmp_path)
        vm.watchdog = False
        with running(vm):
            kept(vm, "1", 1)
            assert "kbuild: watched over by Software Watchdog" in vm.console()
            vm.ok(FILES)
            online(vm)
            left_after_three_tries(vm, fleet, "hang", 1)

    def test_an_initrd_by_dracut_is_watched_over_too(fleet: Fleet, tmp_path: Path) -> None:
        given = {"recipe": "hooked.yaml", "generator": "dracut"}
        reference = fleet.publish("dracut", **given, hook="pass.sh", v="2")
        hanging = fleet.publish("hanging", **given, v="3")
        with running(fleet.ready().thawed(tmp_path)) as vm:
            vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
            vm.sh("sync; reboot")
            kept(vm, "2", 3)
            watched_over(vm)
            online(vm)
            vm.ok(f"kbuild-node upgrade --plain-http {hanging}", 600)
            vm.sh("sync; reboot")
            kept(vm, "2", 7)
            (failed,) = status(vm)["failed"]
            assert "it never came as far as this program" in failed["why"]

    def test_a_damaged_shared_layer_leads_to_recovery_which_repairs_it(fleet: Fleet, tmp_path: Path) -> None:
        reference = fleet.publish("same", v="1")
        with running(fleet.ready().thawed(tmp_path)) as vm:
            sums = vm.ok(SUMS)
            base = status(vm)["running"]["layers"][-1]
            vm.ok(f"mount -o remount,rw /run/kbuild/disk && rm /run/kbuild/disk/{base} && sync")
            vm.sh("sync; (sleep 2; reboot -f) &")
            vm.wait(r"kbuild\.recovery", 900)
            online(vm)
            assert status(vm)["running"]["entry"] == "recovery"
            assert "1 layers fetched anew" in vm.ok(f"kbuild-node repair --plain-http {reference}", 600)
            starts = vm.starts()
            vm.sh("sync; reboot")
            kept(vm, "1", starts + 1)
            assert vm.ok(SUMS) == sums
