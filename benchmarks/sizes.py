"""How large a minimal bootable Debian is, disk, root, boot entry, UKI and ISO, against mkosi's of the same packages.

Told besides: what Kairos publishes of its own UKI and ISO. Those were not built here, and hold more.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from benchmarks.artifacts_edit import ARTIFACTS, Artifacts
from benchmarks.disk import peer
from benchmarks.harness import Benchmark, Result
from benchmarks.mkosi import Mkosi

GOAL = 1 / 2
_MB = 1_000_000
_ESP = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
_KAIROS = "Kairos publishes 162 to 260 MB of its UKI, 389 MB of its ISO"


def run() -> Result:
    """Bytes on disk; holes are nobody's."""
    ours, theirs = Artifacts(), peer()
    nodes = ours.run(*ARTIFACTS)["nodes"]
    theirs.build()
    disk, image = _blob(ours, nodes, "disk", "disk"), theirs.image
    mine, iso = _blob(ours, nodes, "uki", "uki"), _blob(ours, nodes, "iso", "iso")
    entry = _blob(ours, nodes, "disk", "uki")
    note = (
        f"root {_root(disk):.0f} MB against {_root(image):.0f}, boot entry {_size(entry):.0f} against "
        f"{_entry(theirs):.0f}; UKI with its layers {_size(mine):.0f}, ISO {_size(iso):.0f} ({_KAIROS})"
    )
    return Result("sizes", "MB", _stored(disk), _stored(image), "mkosi's disk", GOAL, note)


def _blob(ours: Artifacts, nodes: Any, node: str, output: str) -> Path:
    digest = str(nodes[node]["outputs"][output]).removeprefix("sha256:")
    (found,) = (ours.home / "cache").rglob(f"blobs/sha256/{digest[:2]}/{digest}")
    return found


def _entry(theirs: Mkosi) -> float:
    """mkosi leaves what its unified kernel image is made of beside the disk."""
    return sum(_size(theirs.project / f"image.{part}") for part in ("initrd", "vmlinuz"))


def _size(path: Path) -> float:
    return path.stat().st_size / _MB


def _stored(path: Path, start: int = 0, end: int | None = None) -> float:
    """MB between two places of a file that are not holes."""
    found, at = 0, start
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) if end is None else end
        while at < end:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole until the end
                break
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            found += max(0, min(at, end) - min(data, end))
    return found / _MB


def _root(disk: Path) -> float:
    """What is stored in the partitions behind the EFI one: ours has the layers there, mkosi its root."""
    with disk.open("rb") as file:
        file.seek(1024)
        entries = file.read(128 * 128)
    found = 0.0
    for at in range(0, len(entries), 128):
        first, last = struct.unpack_from("<QQ", entries, at + 32)
        if last and entries[at : at + 16] != _ESP:
            found += _stored(disk, first * 512, (last + 1) * 512)
    return found


BENCHMARK = Benchmark("sizes", "how large disk, root, UKI and ISO of a minimal Debian are", run)
