"""Kernels compiled in the sandbox: a sample that behaves as a source tree does, and at will a real one.

    KBUILD_COMPILE_KERNEL=1 .venv/bin/python -m pytest tests/boot/test_compiled_kernel.py

compiles Debian's linux-source with tinyconfig and a fragment, and two modules against it, and starts a machine with
them: ten minutes on two quiet processors.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MAIN = "from kairosbuild.cli.main import run; run()"
MAKEFILE = """\
release = 9.9$(LOCALVERSION)
tinyconfig:
\tprintf 'CONFIG_MODULES=y\\n# CONFIG_EXTRA is not set\\n' > .config
olddefconfig: # as Kconfig does: the last word counts, and what does not exist is dropped
\tgrep -v CONFIG_GONE .config | tac | awk -F'[ =]' '{n = /^#/ ? $$2 : $$1} !seen[n]++' | tac > .new && mv .new .config
all:
\t$(ARCH)-linux-gnu-gcc -O2 -c kernel.c -o kernel.o && cp kernel.o bzImage && : > System.map
\tprintf '0x00000001\\tkfree\\tvmlinux\\tEXPORT_SYMBOL\\t\\n' > Module.symvers
kernelrelease:
\t@echo $(release)
image_name:
\t@echo bzImage
modules_install:
\tmkdir -p $(INSTALL_MOD_PATH)/lib/modules/$(release)/kernel
\t: > $(INSTALL_MOD_PATH)/lib/modules/$(release)/modules.builtin
run-command:
\t$(KBUILD_RUN_COMMAND)
"""
SAMPLE = {
    "linux-9.9/Makefile": MAKEFILE,
    "linux-9.9/Kbuild": "",
    "linux-9.9/kernel.c": "const char *built = __FILE__;\n",
    "linux-9.9/scripts/package/install-extmod-build": 'mkdir -p "$1/include"\n',
}
RECIPE = """\
version: 1
name: compiled
nodes:
  package: {kind: tools, packages: [coreutils, dash]}
  source:
    kind: rule
    on: [package]
    command: cp /in/linux.tar /out/linux.tar
    sources: {linux.tar: linux.tar}
    outputs: [linux.tar]
  kernel:
    kind: kernel
    compile: {archive: source, base: tinyconfig, fragment: extra.config, localversion: -mine}
"""


def kbuild(workspace: Path, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-c", MAIN, *words, "--cache-dir", str(CACHE)]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "linux.tar", "w") as tar:
        for name, text in SAMPLE.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    (tmp_path / "BUILD.yaml").write_text("version: 1\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_source_and_fragments_make_a_kernel(workspace: Path) -> None:
    (workspace / "extra.config").write_text("# more\nCONFIG_EXTRA=y\n")
    outputs = [f"-o=kernel.{name}={name}" for name in ("kconfig", "release", "symbols", "headers")]
    kbuild(workspace, "run", "recipe.yaml", "kernel", "--no-publish", *outputs)
    assert (workspace / "release").read_text() == "9.9-mine\n"
    assert "CONFIG_EXTRA=y" in (workspace / "kconfig").read_text().splitlines()
    assert b"kfree" in (workspace / "symbols").read_bytes()
    with tarfile.open(workspace / "headers") as tar:
        link = tar.getmember("usr/lib/modules/9.9-mine/build")
        assert link.linkname == "../../../src/linux-headers-9.9-mine", (
            "it leads where it led, under merged /usr"
        )
        assert "usr/src/linux-headers-9.9-mine/include" in tar.getnames()


def test_an_option_that_is_lost_is_an_error(workspace: Path) -> None:
    (workspace / "extra.config").write_text("CONFIG_GONE=y\nCONFIG_EXTRA=y\n")
    told = kbuild(workspace, "run", "recipe.yaml", "kernel", "--no-publish", code=1)
    assert "the configuration did not keep CONFIG_GONE=y" in told
    (workspace / "extra.config").write_text("CONFIG_EXTRA=y\nEXTRA\n")
    told = kbuild(workspace, "run", "recipe.yaml", "kernel", "--no-publish", code=2)
    assert "extra.config:2" in told or "fragment:2" in told


if os.environ.get("KBUILD_COMPILE_KERNEL"):
    REAL = """\
version: 1
name: real
nodes:
  package: {kind: tools, packages: [linux-source-6.12, coreutils, dash]}
  source:
    kind: rule
    on: [package]
    command: cp /usr/src/linux-source-6.12.tar.xz /out/linux.tar.xz
    outputs: [linux.tar.xz]
  kernel:
    kind: kernel
    compile: {archive: source, base: tinyconfig, fragment: extra.config, localversion: -mine}
  extra:
    kind: drivers
    kernel: kernel
    build:
      hello: {source: drivers/hello}
      minix: {archive: source, folder: fs/minix, make: {CONFIG_MINIX_FS: m}}
    load: [hello, minix]
  base:   {kind: base, debian: {suite: trixie}}
  system: {kind: packages, on: base, install: [systemd, systemd-sysv, udev, kmod, mount, dbus]}
  os:     {kind: image, layers: [base, system, kernel, extra]}
  disk:   {kind: disk, image: os}
  boots:
    kind: boot-test
    artifact: disk
    kernel: -mine$
    modules: [hello, minix]
    commands: [{run: systemctl is-active systemd-logind}]
"""
    OPTIONS = """
64BIT SMP MODULES MODULE_UNLOAD MODVERSIONS PRINTK MULTIUSER BINFMT_ELF BINFMT_SCRIPT BLK_DEV_INITRD
RD_GZIP RD_ZSTD FUTEX EPOLL SIGNALFD TIMERFD EVENTFD INOTIFY_USER FHANDLE AIO IO_URING POSIX_TIMERS
ADVISE_SYSCALLS MEMBARRIER SYSVIPC POSIX_MQUEUE HIGH_RES_TIMERS CGROUPS MEMCG CGROUP_PIDS CGROUP_BPF
BPF_SYSCALL NAMESPACES UTS_NS IPC_NS PID_NS USER_NS NET_NS SECCOMP SECCOMP_FILTER KCMP TTY VT
UNIX98_PTYS SERIAL_8250 SERIAL_8250_CONSOLE INPUT INPUT_EVDEV ACPI PCI EFI EFI_STUB RELOCATABLE DMI
DMIID PROC_FS PROC_SYSCTL SYSFS SYSCTL DEVTMPFS TMPFS TMPFS_POSIX_ACL TMPFS_XATTR FILE_LOCKING
AUTOFS_FS BLOCK PARTITION_ADVANCED EFI_PARTITION BLK_DEV BLK_DEV_LOOP MD BLK_DEV_DM DM_VERITY
CRYPTO_SHA256 VIRTIO_MENU VIRTIO_PCI VIRTIO_BLK EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY
MISC_FILESYSTEMS EROFS_FS EROFS_FS_XATTR EROFS_FS_POSIX_ACL EROFS_FS_SECURITY EROFS_FS_ZIP
EROFS_FS_ZIP_ZSTD OVERLAY_FS VFAT_FS NLS_CODEPAGE_437 NLS_ASCII NLS_ISO8859_1 NLS_UTF8 EFIVAR_FS
DMI_SYSFS SHMEM NET UNIX INET NETDEVICES WATCHDOG I6300ESB_WDT
"""  # what a small kernel has to have for our initrd, systemd and the machine of a boot test

    @pytest.mark.timeout(5400)
    def test_a_real_one_with_modules_of_its_own_boots(tmp_path: Path) -> None:
        (tmp_path / "extra.config").write_text("".join(f"CONFIG_{name}=y\n" for name in OPTIONS.split()))
        (tmp_path / "BUILD.yaml").write_text("version: 1\n")
        (tmp_path / "recipe.yaml").write_text(REAL)
        subprocess.run(["cp", "-r", ROOT / "drivers", tmp_path], check=True)
        kbuild(tmp_path, "run", "recipe.yaml", "extra", "--no-publish")
        told = kbuild(tmp_path, "log", "recipe.yaml", "extra")
        assert "hello: compiled against" in told and "minix: compiled against" in told
        kbuild(tmp_path, "run", "recipe.yaml", "boots", "--no-publish")
