"""The disk of a machine whose power was cut, read without starting it: by the owners of its filesystems, and our node.

Partitions are copied out, the journal of ext4 is replayed by e2fsck, and what lies there then is a machine made of
folders, on which the machine's own program works.
"""

import hashlib
import subprocess
from pathlib import Path

from peers import peer
from vm import Vm

from kairosbuild.boot import gpt as tables
from kairosbuild.node import gpt, mending, upgrade
from kairosbuild.node.http import Access
from kairosbuild.node.machine import Machine
from kairosbuild.node.offer import find
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository

KEPT = (
    "overlay/etc/upper/mine",
    "overlay/var/upper/mine",
    "overlay/home/upper/mine",
    "bind/var/lib/containers/data",
)


class CutDisk:
    """The three partitions that matter, in folders."""

    def __init__(self, vm: Vm, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with vm.disk.open("rb") as file:
            placed = {one.type: one for one in gpt.read(file).partitions}
        self._esp(vm.disk, placed[gpt.ESP])
        self._ext4(vm.disk, placed[gpt.LAYERS], "disk")
        self.kept = self._ext4(vm.disk, placed[str(tables.PERSISTENT)], "kept")

    def machine(self) -> Machine:
        """As the program sees it, while it runs what the boot loader would start."""
        found = Machine(self.folder / "disk", self.folder / "esp", "", "", self.folder / "lock")
        first = found.entries.all()[0]
        return Machine(found.disk, found.esp, first.kernel.cmdline, "", found.lock)

    def sums(self) -> dict[str, str]:
        """What the machine had of its own."""
        return {name: hashlib.sha256((self.kept / name).read_bytes()).hexdigest() for name in KEPT}

    def upgraded(self, reference: str) -> Machine:
        """The upgrade, asked for again."""
        named = parse(reference)
        repository = Repository(named, Access())
        offer = find(named, repository, "linux/amd64", lambda repository, manifest: None)
        upgrade.upgrade(self.machine(), offer, repository, tries=3, again=False, say=lambda text: None)
        return self.machine()

    def _esp(self, disk: Path, partition: gpt.Partition) -> None:
        """As the machine's program mends it before it mounts it."""
        image, into = self._partition(disk, partition, "esp")
        with image.open("r+b") as file:
            for told in mending.mend(file):
                print(f"  on the EFI partition {told}", flush=True)
        done = subprocess.run(
            [peer("fsck.fat", "dosfstools"), "-n", image], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
        copy = [peer("mcopy", "mtools"), "-s", "-n", "-Q", "-i", image]
        subprocess.run([*copy, "::EFI", into], check=True)
        image.unlink()

    def _partition(self, disk: Path, partition: gpt.Partition, name: str) -> tuple[Path, Path]:
        """A copy of a partition, and a folder for what is in it."""
        image, into = self.folder / f"{name}.img", self.folder / name
        into.mkdir()
        words = ["bs=1M", "conv=sparse", "status=none", f"if={disk}", f"of={image}"]
        count = (partition.last - partition.first + 1) // 2048
        subprocess.run(["dd", *words, f"skip={partition.first // 2048}", f"count={count}"], check=True)
        return image, into

    def _ext4(self, disk: Path, partition: gpt.Partition, name: str) -> Path:
        image, into = self._partition(disk, partition, name)
        done = subprocess.run([peer("e2fsck", "e2fsprogs"), "-fy", image], capture_output=True, check=False)
        assert done.returncode in (0, 1), done.stdout  # 1: the journal was replayed, orphans were let go
        dump = [peer("debugfs", "e2fsprogs"), "-R", f"rdump / {into}", image]
        subprocess.run(dump, check=True, capture_output=True)
        image.unlink()
        return into
