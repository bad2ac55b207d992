"""The peer of the disk benchmarks: mkosi 25 of Debian trixie, in a trixie tree of its own.

Needs root and mmdebstrap (installed when missing). Tree and package cache are kept between runs in
KBUILD_BENCH_DIR (default ~/.cache/kairosbuild-bench), so that downloads are cached on both sides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

TOOLS = (
    "mkosi,systemd,systemd-repart,systemd-ukify,systemd-boot,systemd-boot-efi,erofs-utils,dosfstools,mtools,"
    "e2fsprogs,cryptsetup-bin,zstd,cpio,kmod,python3-pefile,uidmap,debian-archive-keyring,ca-certificates"
)
PACKAGES = ("systemd", "systemd-sysv", "udev", "dbus", "iproute2")
KERNEL = "linux-image-cloud-amd64"

CONFIG = """\
[Distribution]
Distribution=debian
Release=trixie
Mirror={mirror}
[Output]
Format=disk
Output=image
[Content]
Bootable=yes
Bootloader=systemd-boot
Packages={packages}
KernelCommandLine=console=ttyS0 systemd.firstboot=no
[Build]
Incremental=yes
PackageCacheDirectory=/proj/packages
CacheDirectory=/proj/cache
WorkspaceDirectory=/work
"""

SOURCES = """\
Types: deb
URIs: {mirror}
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def bench_dir() -> Path:
    """Where peers and their caches live between runs."""
    return Path(os.environ.get("KBUILD_BENCH_DIR", Path.home() / ".cache/kairosbuild-bench"))


class Mkosi:
    """A mkosi project with the same packages, kernel and overlay as ours, built incrementally."""

    def __init__(self, mirror: str, project: str = "project", packages: Sequence[str] = PACKAGES) -> None:
        if os.geteuid():
            raise SystemExit("the disk benchmarks run mkosi, which needs root here")
        self.home = bench_dir() / "mkosi"
        self.tree, self.project = self.home / "tree", self.home / project
        self.mirror = mirror
        self._prepare_tree()
        self._prepare_project()
        self.configure(packages)

    @property
    def motd(self) -> Path:
        """The overlay file that the benchmarks change."""
        return self.project / "mkosi.extra/etc/motd"

    @property
    def image(self) -> Path:
        """The disk it makes."""
        return self.project / "image.raw"

    def configure(self, packages: Sequence[str]) -> None:
        """Have these packages, and what a bootable disk takes beside them."""
        wanted = ",".join(dict.fromkeys((*packages, KERNEL, "systemd-boot", "kmod")))
        (self.project / "mkosi.conf").write_text(CONFIG.format(mirror=self.mirror, packages=wanted))

    def forget(self) -> None:
        """Back to cold: images and incremental caches gone, downloaded packages kept."""
        shutil.rmtree(self.project / "cache", ignore_errors=True)
        (self.project / "cache").mkdir()
        for file in self.project.glob("image*"):
            file.unlink()

    def build(self) -> None:
        """One `mkosi --force build`, whole process."""
        self._run("mkosi", "--force", "build")

    def _run(self, *command: str) -> None:
        box = [
            "bwrap", "--bind", str(self.tree), "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc",
            "--bind", "/sys", "/sys", "--bind", str(self.project), "/proj", "--bind", str(self.home / "work"), "/work", "--tmpfs", "/tmp", "--tmpfs", "/run",
            "--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf", "--ro-bind-try", "/etc/hosts", "/etc/hosts",
            "--clearenv", "--setenv", "HOME", "/root", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin",
            "--cap-add", "ALL", "--chdir", "/proj",
        ]  # fmt: skip
        done = subprocess.run([*box, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-4000:]

    def _prepare_tree(self) -> None:
        if (self.tree / "usr/bin/mkosi").exists():
            return
        if missing := [tool for tool in ("mmdebstrap", "bwrap") if not shutil.which(tool)]:
            wanted = ["bubblewrap" if tool == "bwrap" else tool for tool in missing]
            subprocess.run(["apt-get", "install", "-y", *wanted], check=True, stdout=subprocess.DEVNULL)
        self.home.mkdir(parents=True, exist_ok=True)
        fresh = self.home / "tree.new"
        shutil.rmtree(fresh, ignore_errors=True)
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            f"--include={TOOLS}",
            "trixie",
            str(fresh),
            self.mirror,
        ]
        subprocess.run(command, check=True)
        fresh.rename(self.tree)

    def _prepare_project(self) -> None:
        for folder in ("packages", "cache", "mkosi.extra/etc", "mkosi.sandbox/etc/apt/sources.list.d"):
            (self.project / folder).mkdir(parents=True, exist_ok=True)
        (self.home / "work").mkdir(exist_ok=True)
        sources = self.project / "mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources"
        sources.write_text(SOURCES.format(mirror=self.mirror))
        self.motd.write_text("hello\n")
