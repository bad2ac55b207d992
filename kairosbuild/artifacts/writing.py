"""A laid-out disk as a file of one of the formats that hypervisors and clouds take."""

from __future__ import annotations

import uuid
from pathlib import Path

from kairosbuild.boot import gce, qcow2, vhd, vmdk
from kairosbuild.boot.sparse import Sparse

FORMATS = ("raw", "qcow2", "vmdk", "vhd", "gce")
WHOLE = {"gce": gce.GIB}
"""What a disk's size has to be a multiple of, where that is more than a MiB."""

_SUFFIX = {"gce": "tar.gz"}


def suffix(form: str) -> str:
    """What a file of this format is called behind its dot."""
    return _SUFFIX.get(form, form)


def written(disk: Sparse, form: str, path: Path, identity: uuid.UUID, epoch: int) -> Path:
    """Write the disk to this path, which it returns."""
    if form in ("raw", "vhd"):
        disk.write_raw(path)
        if form == "vhd":
            with path.open("ab") as out:
                out.write(vhd.footer(disk.size, identity, epoch))
        return path
    with path.open("xb") as out:
        if form == "qcow2":
            qcow2.write(disk, out.write)
        elif form == "vmdk":
            vmdk.write(disk, out.write, identity.int & 0xFFFFFFFF)
        else:
            gce.write(disk, out.write, epoch)
    return path
