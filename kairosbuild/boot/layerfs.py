"""A layer as a machine mounts it: erofs made from the layer's own tar, sealed with dm-verity.

A tar need not have an entry for each folder it has something in, the root never; mkfs.erofs makes those
0777. They come first, in a tar of their own, with the metadata that the layers below give them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from kairosbuild.boot import verity
from kairosbuild.boot.verity import Verity
from kairosbuild.core.digest import Blob
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.header import encode

VERSION = 1
"""Raise it when the same layer would get another form."""
COMPRESSION_VERSION = 1
"""Raise it when the same kernel configuration would be answered otherwise."""

_ZSTD, _LZ4 = "zstd,3", "lz4hc,9"

Folder = tuple[str, int, int, int]
"""Path, mode, uid, gid."""

ROOT: Folder = ("", 0o755, 0, 0)


def compression(config: bytes) -> str:
    """What a kernel of this configuration can read: zstd since 6.10 where it is on, LZ4 wherever erofs is."""
    return _ZSTD if re.search(rb"^CONFIG_EROFS_FS_ZIP_ZSTD=y$", config, re.MULTILINE) else _LZ4


def command(layer: Blob, epoch: int, packing: str) -> tuple[str, ...]:
    """What makes /out/layer from /in/folders and /in/layer, run in the tools tree `image`."""
    return (
        "/bin/sh",
        "-euc",
        f"cat folders layer | mkfs.erofs --quiet -z{packing} -C65536 -T{epoch} --mkfs-time -U{identity(layer)} "
        "--tar=f --aufs /out/layer",
    )


def identity(layer: Blob) -> uuid.UUID:
    """The filesystem's UUID: the layer's digest."""
    return uuid.UUID(
        bytes=hashlib.sha256(b"kairosbuild erofs " + layer.digest.encode()).digest()[:16], version=4
    )


def folders(implied: Sequence[Folder], epoch: int) -> bytes:
    """The beginning of a tar: the root and the folders that the layer only implies, without an end mark."""
    members = [
        Entry(path or ".", "dir", mode, uid, gid, mtime=epoch) for path, mode, uid, gid in (ROOT, *implied)
    ]
    return b"".join(map(encode, members))


def seal(erofs: Path, into: Path, layer: Blob) -> Verity:
    """Copy a filesystem and append its hash tree to the copy."""
    shutil.copyfile(erofs, into)
    into.chmod(0o644)
    return verity.append(into, identity(layer))


def arguments(layers: Sequence[Verity], cuts: Mapping[str, int]) -> list[str]:
    """The kernel arguments that tell `initrd.sh` which layers are the root; `layers` are top to base."""
    found = ["kbuild.layers=" + ",".join(f"{one.root_hash}:{one.hash_offset}" for one in layers)]
    if cuts:
        found.append("kbuild.cut=" + ",".join(f"{place}:{count}" for place, count in sorted(cuts.items())))
    return found
