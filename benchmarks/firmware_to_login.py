"""From the firmware's first instruction to a login prompt on the serial console: our Debian against mkosi's.

The same packages and kernel, started by the same emulator (QEMU and OVMF out of the tools tree, no KVM) by turns, each
time for the first time: mkosi's does then what ours had done when it was built, and its wizard is told to ask nothing.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.disk import Ours, peer
from benchmarks.harness import Benchmark, Result
from benchmarks.mkosi import bench_dir
from kairosbuild.store.store import Store

GOAL = 1.0
RUNS = 3
_MOST = 300.0
_RECIPE = "version: 1\nname: qemu\nnodes:\n  qemu: {kind: tools, purpose: qemu}\n"


def run() -> Result:
    """Build both, start them by turns, take the medians."""
    ours, theirs = Ours(), peer()
    made = ours.disk(ours.build())
    theirs.build()
    disks = {"ours": Store(ours.home / "cache").cas.path(made), "theirs": theirs.image}
    tree = _emulator()
    times: dict[str, list[float]] = {name: [] for name in disks}
    for _ in range(RUNS):
        for name, disk in disks.items():
            times[name].append(_seconds(tree, disk))
    medians = {name: statistics.median(some) for name, some in times.items()}
    note = "; ".join(f"{name} {' '.join(f'{one:.1f}' for one in some)}" for name, some in times.items())
    return Result("firmware-to-login", "s", medians["ours"], medians["theirs"], "mkosi", GOAL, note)


def _emulator() -> Path:
    """QEMU and its firmware, unpacked once."""
    home = bench_dir() / "qemu"
    if not (home / "tree").exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "qemu.yaml").write_text(_RECIPE)
        command = [sys.executable, "-m", "kairosbuild", "run", "qemu.yaml", "--progress=none"]
        command += [f"--cache-dir={bench_dir() / 'kairosbuild/cache'}", "-o", "qemu=qemu.tar"]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL)
        fresh = home / "tree.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        subprocess.run(["tar", "-xf", home / "qemu.tar", "-C", fresh], check=True)
        (home / "qemu.tar").unlink()
        fresh.rename(home / "tree")
    return home / "tree"


def _seconds(tree: Path, disk: Path) -> float:
    """Seconds until it asks for a login; the disk stays as it is."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as scratch:
        folder = Path(scratch)
        shutil.copyfile(tree / "usr/share/OVMF/OVMF_VARS_4M.fd", folder / "vars")
        start = time.perf_counter()
        machine = subprocess.Popen(_command(tree, disk, folder), env=_environment(tree, folder))
        try:
            while b"login:" not in _said(folder):
                assert machine.poll() is None, f"the machine of {disk} ended"
                seconds = time.perf_counter() - start
                assert seconds < _MOST, f"{disk} asks for no login:\n{_said(folder)[-2000:]!r}"
                time.sleep(0.05)
            return time.perf_counter() - start
        finally:
            machine.kill()
            machine.wait()


def _said(folder: Path) -> bytes:
    serial = folder / "serial"
    return serial.read_bytes() if serial.exists() else b""


def _environment(tree: Path, folder: Path) -> dict[str, str]:
    return {"QEMU_MODULE_DIR": f"{tree}/usr/lib/x86_64-linux-gnu/qemu", "TMPDIR": str(folder)}


def _command(tree: Path, disk: Path, folder: Path) -> list[str]:
    libraries, share = tree / "usr/lib/x86_64-linux-gnu", tree / "usr/share"
    return [
        f"{libraries}/ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries}/pulseaudio",
        f"{tree}/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-L", f"{share}/qemu", "-L", f"{share}/seabios",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", "2", "-m", "1024",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={share}/OVMF/OVMF_CODE_4M.fd",
        "-drive", f"if=pflash,format=raw,unit=1,file={folder}/vars",
        "-drive", f"if=none,id=disk,format=raw,snapshot=on,file={disk}", "-nic", "none", "-vga", "std",
        "-device", "virtio-blk-pci,drive=disk,bootindex=0", "-device", "virtio-rng-pci",
        "-serial", f"file:{folder}/serial",
    ]  # fmt: skip


BENCHMARK = Benchmark(
    "firmware-to-login", "firmware → login prompt under emulation, Debian trixie, against mkosi", run
)
