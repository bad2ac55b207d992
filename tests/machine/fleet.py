"""A recipe for machines, its images in a real registry, and disks to start them from."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from vm import HOST, NETWORK, SHELL_UNIT, Vm, running

from kairosbuild.store.store import Store

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MAIN = "from kairosbuild.cli.main import run; run()"
# `no_timer_check`: on a busy machine an emulated timer is late, and the kernel would panic over it.
RECIPE = """\
version: 1
name: machine
vars: {v: "1", healthy: "yes", patience: "400", early: "", more: "", at: "", config: "", generator: kbuild, hook: hang.sh}
nodes:
  base:    {kind: base, debian: {suite: trixie}}
  system:  {kind: packages, on: base, install: [systemd, systemd-sysv, udev, dbus, iproute2]}
  kernel:  {kind: kernel, on: base, package: linux-image-cloud-amd64}
  agent:   {kind: agent, health: {commands: ["grep -q yes /usr/lib/healthy"], timeout: "${patience}"}}
  shell:   {kind: overlay, source: shell}
  version:
    kind: overlay
    files:
      usr/lib/version: {content: "${v}"}
      usr/lib/healthy: {content: "${healthy}"}
      usr/lib/early: {content: "${early}"}
      usr/lib/more: {content: "${more}"}
  os:      {kind: image, layers: [base, system, kernel, agent, shell, version]}
  boot:
    kind: boot
    image: os
    persistent: [etc, var, home, root, opt, srv]
    binds: [var/lib/containers]
    cmdline: ["console=tty0", "console=ttyS0,115200", no_timer_check]
  disk:
    kind: disk
    image: boot
    format: raw
    firmware: both
    partitions:
      - {type: bios-boot}
      - {type: esp, size: 128M}
      - {type: layers, size: 400M}
      - {type: recovery}
      - {type: persistent}
  iso:     {kind: iso, image: boot, cmdline: ["console=ttyS0,115200", no_timer_check, "kbuild.config=${config}"]}
  net:     {kind: netboot, image: boot, cmdline: ["console=ttyS0,115200", no_timer_check, "kbuild.config=${config}"]}
  qemu:    {kind: tools, purpose: qemu}
publish: {targets: [os, boot], to: "${at}"}
"""
HOOKED = """\
  hooked:  {kind: initrd, image: os, generator: "${generator}", hooks: {start: "${hook}"}}
  qemu:"""
CONFIG = """\
#cloud-config
hostname: installed
users: [{name: kairos, passwd: $6$x$y, admin: true, ssh_authorized_keys: [ssh-ed25519 AAAA me]}]
write_files: [{path: /etc/told, content: by the configuration, permissions: "0600"}]
install: {auto: true, device: /dev/vda, reboot: true}
"""
RUN_EARLY = """\
[Unit]
Description=What an image needs before its file systems
DefaultDependencies=no
Before=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/lib/early
"""
RUN_MORE = """\
[Unit]
Description=What an image does that it should not
After=kbuild-node.service
[Service]
Type=oneshot
ExecStart=/bin/sh /usr/lib/more
StandardOutput=journal+console
[Install]
WantedBy=multi-user.target
"""


@dataclass
class Fleet:
    """One workspace, one registry."""

    folder: Path
    registry: str
    common: Path | None = None  # a folder of all workers of a test run
    _ready: Vm | None = field(default=None)

    image: ClassVar[str] = "os"
    disk: ClassVar[str] = "disk"
    recipe: ClassVar[str] = "machine.yaml"

    def __post_init__(self) -> None:
        self.written()

    def written(self) -> None:
        """The workspace's own files."""
        units = self.folder / "shell/usr/lib/systemd/system"
        for name, unit, wanted in (
            ("testshell", SHELL_UNIT, "sysinit.target.wants"),
            ("early", RUN_EARLY, "local-fs.target.requires"),
            ("more", RUN_MORE, "multi-user.target.wants"),
        ):
            wants = units / wanted
            wants.mkdir(parents=True)
            (units / f"{name}.service").write_text(unit)
            (wants / f"{name}.service").symlink_to(f"../{name}.service")
        (self.folder / self.recipe).write_text(RECIPE)
        hooked = RECIPE.replace(
            "    image: os\n    persistent", "    image: os\n    initrd: hooked\n    persistent"
        )
        (self.folder / "hooked.yaml").write_text(hooked.replace("  qemu:", HOOKED))
        (self.folder / "hang.sh").write_text("sleep 100000\n")
        (self.folder / "pass.sh").write_text("true\n")
        lock = ROOT / "recipes/debian.lock"
        if lock.exists():
            shutil.copyfile(lock, self.folder / "machine.lock")
            shutil.copyfile(lock, self.folder / "hooked.lock")

    def kbuild(self, *words: str, cache: Path = CACHE) -> str:
        command = [sys.executable, "-c", MAIN, *words, "--cache-dir", str(cache)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def publish(self, tag: str, recipe: str = "", registry: str = "", **variables: str) -> str:
        """Build an image of these variables and publish it; the reference a machine knows it by."""
        registry = registry or self.registry
        at = f"{registry}/os:{tag}"
        given = [
            word for name, value in {**variables, "at": at}.items() for word in ("--set", f"{name}={value}")
        ]
        self.kbuild("run", recipe or self.recipe, self.image, "boot", *given)
        return f"{HOST}:{registry.rpartition(':')[2]}/os:{tag}"

    def tree(self) -> Path:
        """QEMU and its firmware."""
        tree = self.folder / "qemu"
        if not tree.exists():
            tar = self.built("qemu", "qemu.tar")
            tree.mkdir()
            subprocess.run(["tar", "-xf", tar, "-C", tree], check=True)
            tar.unlink()
        return tree

    def built(self, node: str, name: str, **variables: str) -> Path:
        """An artifact of the recipe as a file or folder of this name."""
        path = self.folder / name
        if not path.exists():
            given = [f"--set={one}={value}" for one, value in variables.items()]
            to = [f"--set=at={self.registry}/os", "-o", f"{node}={name}"]
            self.kbuild("run", self.recipe, node, "--no-publish", *given, *to)
        return path

    def offered(self, config: str) -> Path:
        """The files of the netboot artifact, as a server has them."""
        made = self.built("net", "net.json", config=base64.b64encode(config.encode()).decode())
        cas, folder = Store(CACHE).cas, self.folder / "net"
        folder.mkdir()
        for one in json.loads(made.read_text())["files"]:
            (folder / one["title"]).symlink_to(cas.path(one["digest"]))
        return folder

    def machine(self, folder: Path, *more: str, uefi: bool = True) -> Vm:
        """A machine with the disk of version 1, one GiB larger than it left the factory."""
        folder.mkdir(parents=True, exist_ok=True)
        disk = folder / "disk.raw"
        subprocess.run(["cp", "--sparse=always", self.built(self.disk, "disk.raw"), disk], check=True)
        disk.chmod(0o644)
        os.truncate(disk, disk.stat().st_size + (1 << 30))
        return Vm(self.tree(), folder, disk, *more, uefi=uefi)

    def blank(
        self, folder: Path, *more: str, uefi: bool = True, memory: int = 1024, bootfile: str = ""
    ) -> Vm:
        """A machine with an empty disk."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "disk.raw").touch()
        os.truncate(folder / "disk.raw", 2 << 30)
        disk = folder / "disk.raw"
        return Vm(self.tree(), folder, disk, *more, uefi=uefi, memory=memory, bootfile=bootfile)

    def live(self, folder: Path, config: str, *, uefi: bool = True) -> Vm:
        """A machine with an empty disk and a CD, which has this configuration on its command line."""
        name = f"{hashlib.sha256(config.encode()).hexdigest()[:8]}.iso"
        iso = self.built("iso", name, config=base64.b64encode(config.encode()).decode())
        medium = f"if=none,id=cd,format=raw,readonly=on,file={iso}"
        return self.blank(folder, "-drive", medium, "-device", "ide-cd,drive=cd,bootindex=2", uefi=uefi)

    def ready(self) -> Vm:
        """A machine that a CD has installed, frozen: it is healthy, has files of its own, and the network is up.

        The first worker that asks makes it for all.
        """
        if self._ready is None:
            with self._alone() as users:
                vm = self.live(users.parent / "ready", CONFIG)
                if not vm.frozen:
                    self._install(vm)
                users.touch()
            self._ready = vm
        return self._ready

    def close(self) -> None:
        """The last worker that used it takes the frozen machine away: it is large."""
        if self._ready is not None:
            with self._alone() as users:
                users.unlink()
                if not list(users.parent.glob("ready.user*")):
                    shutil.rmtree(users.parent / "ready")

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        common = self.common or self.folder
        with (common / "ready.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield common / f"ready.user{os.getpid()}"

    def _install(self, vm: Vm) -> None:
        with running(vm, keep=True):
            vm.wait("kbuild-node: installed to /dev/vda", 900)
            kept(vm, "1", 2)
            vm.ok(FILES)
            online(vm)
            vm.freeze()


def kept(vm: Vm, version: str, starts: int) -> None:
    """Wait until this many starts have happened and the last one was found healthy; it runs this version."""
    vm.healthy(starts)
    found = vm.ok("cat /usr/lib/version")
    assert found == version, f"it runs {found!r}"


def online(vm: Vm) -> None:
    vm.ready()
    vm.ok("modprobe virtio_net; until ls /sys/class/net/e*; do sleep 1; done")
    vm.ok(NETWORK)


FILES = "for d in etc var home root opt srv var/lib/containers; do echo $d > /$d/mine; done; head -c 3000000 /dev/urandom > /var/lib/containers/data; sync"
SUMS = "sha256sum /etc/mine /var/mine /home/mine /root/mine /opt/mine /srv/mine /var/lib/containers/mine /var/lib/containers/data; sync"


def status(vm: Vm, *more: str) -> dict:
    return json.loads(vm.ok(" ".join(["kbuild-node status --json", *more]), 600))


def watched_over(vm: Vm) -> None:
    """From the initrd on, and fed by the system."""
    assert "kbuild: watched over by i6300ESB timer" in vm.console()
    watchdog = "/sys/class/watchdog/watchdog0"
    assert vm.ok(f"cat {watchdog}/state {watchdog}/timeout") == "active\n60"
    assert vm.sh("exec 9> /dev/watchdog0")[0] != 0, "somebody holds it"
