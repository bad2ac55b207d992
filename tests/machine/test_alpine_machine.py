"""The same on musl and OpenRC: a machine of Alpine packages, upgraded and rolled back."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from distros.alpine import Alpine
from distros.serving import Served, layout
from fleet import CONFIG, ROOT, Fleet, kept, online, status
from vm import Vm, running

IMAGE = "docker.io/library/alpine:${release}"
ALL = os.environ.get("KBUILD_MACHINES") == "all"
pytestmark = [pytest.mark.slow, *([pytest.mark.timeout(0)] if ALL else [])]
SHELL = "#!/bin/sh\n(while :; do /bin/sh -i < /dev/ttyS1 > /dev/ttyS1 2>&1; sleep 1; done) &\n"
VARS = 'vars:\n  v: "1"\n  healthy: "yes"\n  patience: "400"\n  at: ""\n  config: ""\n'
MORE = """\
  agent:   {kind: agent, health: {commands: ["grep -q yes /usr/lib/healthy"], timeout: "${patience}"}}
  version: {kind: overlay, files: {usr/lib/version: {content: "${v}"}, usr/lib/healthy: {content: "${healthy}"}}}
  machine: {kind: image, layers: [base, system, kernel, site, agent, version]}
  boot:    {kind: boot, image: machine, persistent: [etc, var, root, home], cmdline: ["console=ttyS0,115200", no_timer_check]}
  mdisk:
    kind: disk
    image: boot
    format: raw
    firmware: both
    partitions:
      - {type: bios-boot}
      - {type: esp, size: 128M}
      - {type: layers, size: 300M}
      - {type: recovery}
      - {type: persistent}
  iso:     {kind: iso, image: boot, cmdline: ["console=ttyS0,115200", no_timer_check, "kbuild.config=${config}"]}
  qemu:    {kind: tools, purpose: qemu}
"""


class Alpines(Fleet):
    """The fleet's workspace with the recipe of Alpine in it."""

    image, disk = "machine", "mdisk"

    def written(self) -> None:
        alpine = Alpine()
        alpine.add_real()
        alpine.publish()
        alpine.publish("community")
        self.served = Served(alpine.files)
        os.environ["KBUILD_MIRROR_ALPINE"] = self.served.url
        for name in ("recipes/include", "overlays"):
            (self.folder / name).parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", ROOT / name, self.folder / name], check=True)
        shell = self.folder / "overlays/openrc/etc/local.d/shell.start"
        shell.parent.mkdir()
        shell.write_text(SHELL)
        shell.chmod(0o755)
        text = (ROOT / "recipes/alpine.yaml").read_text()
        assert IMAGE in text
        text = text.replace(IMAGE, layout(self.folder / "image", alpine.base(), "3.23"))
        text = text.replace("vars:\n", VARS, 1) + MORE
        text += 'publish: {targets: [machine, boot], to: "${at}", requires: []}\n'
        (self.folder / self.recipe).write_text(text)
        (self.folder / "BUILD.yaml").write_text(f"version: 1\nrecipes: [{self.recipe}]\n")

    recipe = "recipes/machine.yaml"


@pytest.fixture(scope="module")
def alpines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from debian_registry import started

    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        fleet = Alpines(tmp_path_factory.mktemp("alpines"), host)
        yield fleet
        fleet.served.close()
        del os.environ["KBUILD_MIRROR_ALPINE"]


def upgraded_and_back(vm: Vm, reference: str, starts: int) -> None:
    assert "musl" in vm.ok("ls /lib")
    assert vm.ok("cat /sys/class/watchdog/watchdog0/state") == "active"
    assert vm.sh("exec 9> /dev/watchdog0")[0] != 0, "the agent's service holds it"
    vm.ok("echo kept > /var/mine; hostname > /root/mine")
    online(vm)
    vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
    vm.sh("sync; reboot")
    kept(vm, "2", starts + 1)
    assert vm.ok("cat /var/mine") == "kept"
    vm.ok("kbuild-node rollback")
    vm.sh("sync; reboot")
    kept(vm, "1", starts + 2)
    assert vm.ok("cat /var/mine") == "kept"


def test_a_machine_of_alpine_that_a_bios_starts_upgrades_and_rolls_back(
    alpines: Fleet, tmp_path: Path
) -> None:
    reference = alpines.publish("b", v="2")
    with running(alpines.machine(tmp_path, uefi=False)) as vm:
        kept(vm, "1", 1)
        upgraded_and_back(vm, reference, 1)


if ALL:

    def test_a_live_medium_of_alpine_installs_itself_and_the_machine_upgrades(
        alpines: Fleet, tmp_path: Path
    ) -> None:
        reference = alpines.publish("b", v="2")
        with running(alpines.live(tmp_path, CONFIG)) as vm:
            vm.wait("kbuild-node: installed to /dev/vda", 900)
            kept(vm, "1", 2)
            assert vm.ok("cat /etc/hostname") == "installed"
            upgraded_and_back(vm, reference, 2)

    def test_under_openrc_a_hang_and_a_failing_health_check_are_failed_starts_too(
        alpines: Fleet, tmp_path: Path
    ) -> None:
        reference = alpines.publish("unhealthy", v="3", healthy="no", patience="60")
        with running(alpines.machine(tmp_path)) as vm:
            kept(vm, "1", 1)
            vm.ok("pkill -STOP -f feed-watchdog")
            kept(vm, "1", 2)
            vm.ok("echo kept > /var/mine; sync")
            online(vm)
            vm.ok(f"kbuild-node upgrade --plain-http {reference}", 600)
            vm.sh("sync; reboot")
            kept(vm, "1", 6)
            (failed,) = status(vm)["failed"]
            assert "'grep -q yes /usr/lib/healthy' fails" in failed["why"]
            assert vm.ok("cat /var/mine") == "kept"
