"""Where a machine keeps what it boots from, and how that is made writable for a moment."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kairosbuild.node import gpt, mending
from kairosbuild.node.entries import Entries, Entry, running
from kairosbuild.node.layers import Layers
from kairosbuild.node.problem import Problem

RUN = Path("/run/kbuild")
_TRIES, _PAUSE = 25, 0.2  # seconds
_ESP_FLAGS = "nosuid,nodev,noexec"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as folders: the layers filesystem and the EFI partition, where they are mounted.

    `device` is the layers' own block device; without one (in tests) the folders are used as they are.
    """

    disk: Path = RUN / "disk"
    esp: Path = RUN / "esp"
    cmdline: str = ""
    device: str = ""
    lock: Path = RUN / "lock"

    @property
    def layers(self) -> Layers:
        """The layer store."""
        return Layers(self.disk)

    @property
    def entries(self) -> Entries:
        """The boot entries."""
        return Entries(self.esp)

    @property
    def recovery(self) -> bool:
        """Whether this is the recovery system, which has its layers elsewhere."""
        return "kbuild.recovery" in self.cmdline.split()

    def running(self) -> Entry | None:
        """The entry this machine runs."""
        return running(self.entries.all(), self.cmdline)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Have the EFI partition mounted, at least to read."""
        if self.device:
            self.esp.mkdir(parents=True, exist_ok=True)
            with self.esp.with_name("esp.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not os.path.ismount(self.esp):
                    self._mount_esp()
        yield

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one that changes layers and entries; both are writable inside, and synced behind."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as problem:
                raise Problem(
                    "another kbuild-node is at work", reason="busy", hint="wait for it"
                ) from problem
            with self.reading():
                self._remount("rw")
                try:
                    yield
                finally:
                    os.sync()
                    self._read_only()

    def _remount(self, mode: str) -> None:
        if self.device:
            # By device and place, or mount(8) would repeat `dirsync`, which the kernel keeps and refuses to be told again.
            run("mount", "-o", f"remount,{mode},{_ESP_FLAGS}", self._esp(), str(self.esp))
            run("mount", "-o", f"remount,{mode}", str(self.disk))

    def _read_only(self) -> None:
        """Have nobody write any more. What had an extension open lets go of it a little later; all is synced by then."""
        for left in reversed(range(_TRIES)):
            try:
                self._remount("ro")
                return
            except Problem as problem:
                if not left:
                    print(f"kbuild-node: it stays writable: {problem}", file=sys.stderr)
                time.sleep(_PAUSE)

    def _mount_esp(self) -> None:
        """In order, whatever interrupted who wrote it last; each name is on the disk before the next is changed."""
        for done in mending.mend_device(self._esp()):
            print(f"kbuild-node: on the EFI partition {done}", file=sys.stderr)
        run("mount", "-t", "vfat", "-o", f"ro,dirsync,umask=0077,{_ESP_FLAGS}", self._esp(), str(self.esp))

    def _esp(self) -> str:
        """The EFI partition of the disk that the layers are on, and of no other."""
        return partition_of_type(parent(self.device), gpt.ESP)


def here() -> Machine:
    """The machine this runs on. Raises Problem `not-a-node`."""
    device = mounted_from(RUN / "disk")
    cmdline = Path("/proc/cmdline").read_text()
    if not device:
        raise Problem(
            "this machine was not started from layers",
            reason="not-a-node",
            hint="kbuild-node works on a machine that boots an image of kbuild",
        )
    if "kbuild.recovery" in cmdline.split():
        return _from_recovery(device, cmdline)
    return Machine(cmdline=cmdline, device=device)


def _from_recovery(device: str, cmdline: str) -> Machine:
    """In recovery the layers filesystem is not what is booted from; it is mounted beside."""
    disk = RUN / "layers"
    layers = partition_of_type(parent(device), gpt.LAYERS)
    if not os.path.ismount(disk):
        disk.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "ext4", "-o", "ro,nosuid,nodev", layers, str(disk))
    return Machine(disk=disk, cmdline=cmdline, device=layers)


def oci_platform() -> str:
    """This machine as registries call it."""
    return f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"


def mounted_from(place: Path) -> str:
    """The device mounted at a place, "" when none is."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, *_ = line.split()
        if where == str(place) and device.startswith("/dev/"):
            return device
    return ""


def block(device: str) -> Path:
    """What the kernel tells of a block device, whatever name it goes by."""
    number = os.stat(device).st_rdev  # noqa: PTH116
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()


def parent(device: str) -> str:
    """The disk that a partition is on."""
    node = Path("/sys/class/block", Path(device).name).resolve()
    if not (node / "partition").exists():
        raise Problem(f"{device} is no partition", reason="not-a-node")
    return f"/dev/{node.parent.name}"


def partition_of_type(disk: str, kind: str) -> str:
    """The first partition of a type on a disk. Raises Problem `no-partition`."""
    with Path(disk).open("rb") as file:
        table = gpt.read(file)
    number = next((one.number for one in table.partitions if one.type == kind), 0)
    for node in Path("/sys/class/block", Path(disk).name).iterdir():
        file_name = node / "partition"
        if number and file_name.exists() and int(file_name.read_text()) == number:
            return f"/dev/{node.name}"
    raise Problem(f"{disk} has no partition of type {kind}", reason="no-partition")


def run(*command: str) -> str:
    """Run a program of the image. Raises Problem `command-failed` with what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Problem(f"{command[0]}: {problem}", reason="command-failed") from problem
    if done.returncode:
        raise Problem(f"{' '.join(command)}: {done.stderr.strip()}", reason="command-failed")
    return done.stdout
