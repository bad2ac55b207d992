"""A laid-out disk as a file of one of the formats that hypervisors and clouds take."""

from __future__ import annotations

from pathlib import Path

from kairosbuild.boot import qcow2
from kairosbuild.boot.sparse import Sparse

FORMATS = ("raw", "qcow2")


def suffix(form: str) -> str:
    """What a file of this format is called behind its dot."""
    return form


def written(disk: Sparse, form: str, path: Path) -> Path:
    """Write the disk to this path, which it returns."""
    if form == "raw":
        disk.write_raw(path)
    else:
        with path.open("xb") as out:
            qcow2.write(disk, out.write)
    return path
