"""How a machine's filesystems are made writable for a moment."""

from pathlib import Path

import pytest

from kairosbuild.node import machine
from kairosbuild.node.problem import Problem


@pytest.fixture
def said(monkeypatch):
    """What is run; `busy` is how often making a filesystem read-only fails."""

    class Said(list):
        busy = 0

        def run(self, *command):
            self.append(" ".join(command))
            if "remount,ro " in self[-1] and self.busy:
                self.busy -= 1
                raise Problem("mount point is busy", reason="command-failed")
            return ""

    said = Said()
    monkeypatch.setattr(machine, "run", said.run)
    monkeypatch.setattr(machine, "_PAUSE", 0)
    monkeypatch.setattr(machine.Machine, "_esp", lambda self: "/dev/esp")
    monkeypatch.setattr(machine.mending, "mend_device", lambda device: [])
    return said


def test_names_on_the_efi_partition_are_written_in_order(said, tmp_path):
    with machine.Machine(
        tmp_path / "disk", tmp_path / "esp", device="/dev/x", lock=tmp_path / "lock"
    ).changing():
        pass
    mount, rw, *_ = said
    assert (mount.split()[:3], "ro,dirsync," in mount) == (["mount", "-t", "vfat"], True)
    assert "remount,rw,nosuid" in rw
    assert rw.endswith(f"/dev/esp {tmp_path / 'esp'}"), (
        "or mount(8) repeats dirsync, which the kernel refuses"
    )


@pytest.mark.parametrize(("busy", "told"), [(3, ""), (1000, "it stays writable")])
def test_what_is_still_open_for_a_moment_is_no_failure(said, tmp_path: Path, capsys, busy, told):
    said.busy = busy
    with machine.Machine(
        tmp_path / "disk", tmp_path / "esp", device="/dev/x", lock=tmp_path / "lock"
    ).changing():
        pass
    assert sum("remount,ro /" in one or one.endswith("disk") for one in said) > 3
    assert told in capsys.readouterr().err
    assert bool(told) == bool(said.busy)
