"""A machine that a live medium installed, unattended."""

from pathlib import Path

import pytest
from fleet import Fleet, status
from vm import running

pytestmark = pytest.mark.slow


def test_a_live_medium_installs_itself(fleet: Fleet, tmp_path: Path) -> None:
    with running(fleet.ready().thawed(tmp_path)) as vm:
        assert vm.ok("cat /etc/hostname /etc/told") == "installed\nby the configuration"
        assert "ssh-ed25519 AAAA me" in vm.ok("cat /home/kairos/.ssh/authorized_keys")
        known = status(vm)
        assert (known["running"]["entry"], known["recovery"]["entry"]) == ("os-1", "recovery")
        assert known["running"]["blessed"]
        assert int(vm.ok("stat -f -c %b /run/kbuild/persistent")) * 4096 > 700 << 20, "it has grown"
