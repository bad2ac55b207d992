"""A Debian package: an `ar` archive of a control tar and a data tar (deb(5)), read as a stream."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from kairosbuild.core.digest import CHUNK
from kairosbuild.core.errors import InputError
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import Item
from kairosbuild.oci.reader import read_tar
from kairosbuild.oci.transport import decompress
from kairosbuild.sources.spool import Keep, as_tree, spooled

MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""The folders that are links into /usr since Debian 12 (file-hierarchy(7), "merged /usr")."""

_MAGIC = b"!<arch>\n"
_LIB64 = ("amd64", "ppc64el", "loong64")


def unpack(debs: Iterable[Path], spool: BinaryIO, keep: Keep = lambda path: True) -> list[Item]:
    """The files of these packages as one tree over merged /usr; no maintainer script is run.

    Contents go to `spool` (an open real file, which the items refer to). Where two packages have a path,
    the later one's file and the earlier one's folder win, as with dpkg. `keep` decides by path.
    """
    items = chain.from_iterable(spooled(members(deb), spool, keep) for deb in debs)
    return as_tree(items, spool, folders_stay=True)


def merged_links(architecture: str = "amd64") -> list[Item]:
    """The top-level links of merged /usr."""
    names = ["bin", "lib", "sbin"] + (["lib64"] if architecture in _LIB64 else [])
    return [(Entry(name, "symlink", 0o777, target=f"usr/{name}"), None) for name in names]


def merged(path: str, *, folder: bool = False) -> str:
    """Where a path really is under merged /usr; of the top names, a folder moves and a link stays."""
    top, slash, _ = path.partition("/")
    return f"usr/{path}" if top in MERGED and (slash or folder) else path


def members(deb: Path) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """What the package installs, in its own order, at its places under merged /usr.

    A file's content must be read before going on. Raises InputError (`deb-format`, and those of `read_tar`).
    """
    with deb.open("rb") as stream:
        for entry, content in read_tar(_part(stream, "data", deb)):
            path, target = merged(entry.path, folder=entry.type == "dir"), entry.target
            if entry.type == "hardlink":
                target = merged(target)
            yield replace(entry, path=path, target=target), content


def control(deb: Path) -> dict[str, bytes]:
    """The files of the control archive: `control`, `md5sums`, maintainer scripts."""
    with deb.open("rb") as stream:
        return {e.path: content.read() for e, content in read_tar(_part(stream, "control", deb)) if content}


def _part(stream: BinaryIO, part: str, deb: Path) -> BinaryIO:
    """The decompressed content of the member `control.tar*` or `data.tar*`."""
    if stream.read(len(_MAGIC)) == _MAGIC:
        while len(header := stream.read(60)) == 60 and header[58:] == b"`\n":
            name, size = header[:16].rstrip(b" /"), header[48:58].strip()
            if not size.isdigit():
                break
            if name.startswith(part.encode() + b".tar"):
                limited = cast(BinaryIO, io.BufferedReader(_Limited(stream, int(size)), CHUNK))
                return decompress(limited)
            stream.seek(int(size) + int(size) % 2, 1)
    raise InputError(f"{deb.name} is not a Debian package: it has no {part}.tar", reason="deb-format")


class _Limited(io.RawIOBase):
    """The next bytes of a stream, and no more than these."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)
