"""A live medium in QEMU that installs itself, unattended."""

from pathlib import Path

import pytest
from fleet import Fleet, kept, online, status
from vm import running

pytestmark = pytest.mark.slow

CONFIG = """\
#cloud-config
hostname: installed
users: [{name: kairos, passwd: $6$x$y, admin: true, ssh_authorized_keys: [ssh-ed25519 AAAA me]}]
write_files: [{path: /etc/told, content: by the configuration, permissions: "0600"}]
install: {auto: true, device: /dev/vda, reboot: true}
"""


def test_a_live_medium_installs_itself_and_the_machine_upgrades(fleet: Fleet, tmp_path: Path) -> None:
    with running(fleet.blank(tmp_path, CONFIG)) as vm:
        vm.wait("kbuild-node: installed to /dev/vda", 900)
        kept(vm, "1", 2)
        assert vm.ok("cat /etc/hostname /etc/told") == "installed\nby the configuration"
        assert "ssh-ed25519 AAAA me" in vm.ok("cat /home/kairos/.ssh/authorized_keys")
        known = status(vm)
        assert (known["running"]["entry"], known["recovery"]["entry"]) == ("os-1", "recovery")
        assert int(vm.ok("stat -f -c %b /run/kbuild/persistent")) * 4096 > 700 << 20, "it has grown"
        online(vm)
        vm.ok(f"kbuild-node upgrade --plain-http {fleet.publish('b', v='2')}", 600)
        vm.sh("sync; reboot")
        kept(vm, "2", 3)
        vm.ok("touch /home/kairos/mine && kbuild-node reset --keep home")
        vm.sh("sync; reboot")
        kept(vm, "2", 4)
        assert vm.ok("cat /etc/hostname; ls /home/kairos/mine") == "installed\n/home/kairos/mine"
