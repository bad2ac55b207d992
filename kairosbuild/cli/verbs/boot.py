"""`kbuild boot`: a disk in an emulator, its console on this terminal. Nothing is written to the disk."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.cli.running import failures, running
from kairosbuild.core.errors import InputError
from kairosbuild.execute import engine
from kairosbuild.execute.selection import only

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome

_ACCEL = {"kvm": ("-accel", "kvm", "-cpu", "host"), "tcg": ("-accel", "tcg,thread=multi", "-cpu", "Nehalem")}
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def main(arguments: argparse.Namespace) -> int:
    """Build the disk, start it, and leave when the machine does (or with Ctrl-A X)."""
    arguments.nodes = [arguments.node] if arguments.node else []
    with running(arguments) as parts:
        if not arguments.node:
            arguments.nodes = [_only_disk(parts)]
        outcome = engine.evaluate(parts.request(), parts.wiring(), parts.events)
        if code := failures(parts, outcome):
            return code
        tree = _tools(parts)
        disk = _disk(parts, outcome, only(arguments.nodes[0], outcome.names()))
    with tempfile.TemporaryDirectory(prefix="kbuild-boot-") as folder:
        command = _command(tree, disk, Path(folder), arguments.memory, arguments.accel)
        print("Ctrl-A X leaves the emulator", file=sys.stderr)
        return subprocess.run(command, env={**os.environ, "TMPDIR": folder}, check=False).returncode


def _only_disk(parts: Parts) -> str:
    disks = [node.name for node in parts.recipe().nodes if node.kind == "disk"]
    if len(disks) != 1:
        raise InputError(
            f"{parts.arguments.recipe} has {len(disks)} disks", reason="which-disk",
            hint="name one: " + ", ".join(disks) if disks else "add a node of kind disk",
        )  # fmt: skip
    return disks[0]


def _disk(parts: Parts, outcome: Outcome, node: str) -> Path:
    outputs = outcome.outputs(node)
    if "disk" not in outputs:
        raise InputError(f"{node} is a {outcome.kind(node)}, not a disk", reason="which-disk")
    parts.bring([outputs["disk"]])
    return parts.store.cas.path(outputs["disk"].digest)


def _tools(parts: Parts) -> Path:
    from kairosbuild.execute.roots import Roots

    layer = engine.tools(parts.request(), parts.wiring(), parts.events, "qemu")
    return Roots(parts.store).merged([layer])


def _command(tree: Path, disk: Path, folder: Path, memory: int, accel: str) -> list[str]:
    """The tree's emulator by way of the tree's own loader: nothing of it is installed here."""
    loader = tree / "usr/lib64/ld-linux-x86-64.so.2"
    shutil.copy(tree / "usr/share/OVMF/OVMF_VARS_4M.fd", folder / "vars")
    (folder / "vars").chmod(0o600)
    kind = "qcow2" if disk.open("rb").read(4) == b"QFI\xfb" else "raw"
    return [
        str(loader), "--library-path", f"{tree / _LIBRARIES}:{tree / 'usr/lib'}",
        str(tree / "usr/bin/qemu-system-x86_64"), "-L", str(tree / "usr/share/qemu"), "-L",
        str(tree / "usr/share/seabios"), "-machine", "q35",
        *_ACCEL[accel],
        "-smp", "2", "-m", str(memory), "-nodefaults", "-nographic", "-serial", "mon:stdio", "-no-reboot",
        "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={tree / 'usr/share/OVMF/OVMF_CODE_4M.fd'}",
        "-drive", f"if=pflash,format=raw,unit=1,file={folder / 'vars'}",
        "-drive", f"if=none,id=disk,format={kind},snapshot=on,file={disk}",
        "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
    ]  # fmt: skip
