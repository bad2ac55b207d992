"""GRUB's configuration, run by GRUB itself (grub-emu) over a real EFI partition, up to what it would start."""

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from peers import peer

from kairosbuild.artifacts.grub import counting
from kairosbuild.boot import fat, grub
from kairosbuild.boot.sparse import Sparse

SIZE = 64 << 20
TOLD = "echo TOLD $chosen_file $linux\n"


class Machine:
    """A disk that GRUB starts from, as often as it is asked to."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.image = folder, folder / "esp.img"
        config = counting().decode()
        config = re.sub(r"(?m)^(serial|terminal_\w+) .*\n", "", config[: config.index("loopback ")]) + TOLD
        files = {"boot/grub/grub.cfg": config.encode(), "boot/grub/grubenv": grub.environment({})}
        for number, name in enumerate(names, 1):
            label = name.partition("+")[0]
            described = grub.described(label, (512, 512 * number), (512, 1024), "it's quiet")
            files |= {f"EFI/Linux/{name}.efi": b"kernel", f"boot/entries/{label}.cfg": described}
        disk = Sparse(SIZE)
        disk.add_all(0, fat.build(fat.Volume(SIZE, "ESP", 1, 0), files))
        disk.write_raw(self.image)
        (folder / "map").write_text(f"(hd0) {self.image}\n")

    def start(self) -> str:
        """The entry that GRUB starts, after what it has written down."""
        words = [peer("grub-emu"), "-m", self.folder / "map", "-r", "hd0", "-d", "(hd0)/boot/grub"]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "vt100"}
        )
        os.close(theirs)
        try:
            self._heard(ours, r"grub> ")
            os.write(ours, b"set root=hd0\rset prefix=(hd0)/boot/grub\rsource $prefix/grub.cfg\r")
            found = self._heard(ours, r"TOLD /EFI/Linux/(\S+)\.efi (\d+)\+1")
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        assert "error" not in found.string, found.string
        return found[1]

    @staticmethod
    def _heard(handle: int, pattern: str) -> re.Match[str]:
        heard, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([handle], [], [], 1)[0]:
                heard += os.read(handle, 65536).decode("utf-8", "replace")
            plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]", "", heard)
            if found := re.search(pattern, plain):
                return found
        raise AssertionError(heard)

    def variables(self) -> dict[str, str]:
        read = [peer("mtype", "mtools"), "-i", self.image, "::boot/grub/grubenv"]
        return grub.variables(subprocess.run(read, check=True, capture_output=True).stdout)

    def set(self, **values: str) -> None:
        (self.folder / "env").write_bytes(grub.environment(values))
        copy = [peer("mcopy", "mtools"), "-o", "-i", self.image, self.folder / "env", "::boot/grub/grubenv"]
        subprocess.run(copy, check=True)


def test_the_highest_with_tries_left_is_started_then_the_next_then_recovery(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "os-2+2-1", "os-10+2", "recovery")
    started = [machine.start() for _ in range(5)]
    assert started == ["os-10+2", "os-10+2", "os-2+2-1", "os-2+2-1", "recovery"]
    assert machine.variables() == {"used_os_10": "xx", "used_os_2": "xx"}


def test_what_the_machine_takes_back_is_tried_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "os-1+5", "os-2+1")
    assert [machine.start(), machine.start()] == ["os-2+1", "os-1+5"]
    machine.set()
    assert machine.start() == "os-2+1"


def test_once_is_once_and_counts_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "os-1+3", "os-2+3", "recovery")
    machine.set(once="recovery", used_os_2="xxx")
    assert machine.start() == "recovery"
    assert machine.variables() == {"once": "", "used_os_2": "xxx"}
    machine.set(once="os-2", used_os_2="xxx")
    assert machine.start() == "os-2+3"
    assert machine.start() == "os-1+3"
    machine.set(once="gone")
    assert machine.start() == "os-2+3"


@pytest.mark.parametrize("name", ["os-1", "os-1+0-3"])
def test_one_that_is_not_counted_or_the_last_of_all_is_started(tmp_path: Path, name: str) -> None:
    machine = Machine(tmp_path, name)
    assert [machine.start(), machine.start()] == [name, name]
    assert machine.variables() == {}
