"""A cpio archive in the `newc` form the kernel unpacks, equal for equal entries.

<https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kairosbuild.core.errors import KbuildError

_HEAD = 110  # bytes of a header

Buffer = bytes | memoryview
"""Bytes, or the bytes of a file as they are mapped: what is large is not copied before it is written."""

Member = tuple[str, int, Buffer]
"""Path without a leading slash, mode with its type bits, content (a link's target)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files to be packed: path → (permission bits, content), and links: path → target."""

    files: Mapping[str, tuple[int, Buffer]]
    links: Mapping[str, str]
    folders: tuple[str, ...] = ()

    def members(self) -> list[Member]:
        """Every entry in an order that has each folder before what is in it."""
        found: dict[str, tuple[int, Buffer]] = {
            path: (stat.S_IFREG | mode, data) for path, (mode, data) in self.files.items()
        }
        found |= {path: (stat.S_IFLNK | 0o777, target.encode()) for path, target in self.links.items()}
        for path in (*self.folders, *_parents((*found, *self.folders))):
            found.setdefault(path, (stat.S_IFDIR | 0o755, b""))
        return [(path, mode, data) for path, (mode, data) in sorted(found.items())]


def pack(members: Iterable[Member], epoch: int = 0) -> bytes:
    """The archive of these members, owned by root, with inode numbers in their order."""
    return b"".join(parts(members, epoch))


def parts(members: Iterable[Member], epoch: int = 0) -> list[Buffer]:
    """The same in pieces, contents as they were given."""
    found = [
        part
        for number, (path, mode, data) in enumerate(members, 1)
        for part in _member(number, path, mode, data, epoch)
    ]
    found += _member(0, "TRAILER!!!", 0, b"", 0)
    return [*found, bytes(-sum(map(len, found)) % 512)]


def unpack(archive: bytes) -> list[tuple[str, int, bytes]]:
    """The members of an archive of others, each hard link with its content. Raises KbuildError (`bad-cpio`)."""
    found: list[tuple[str, int, int, bytes]] = []
    at = 0
    while True:
        head = archive[at : at + _HEAD]
        if len(head) < _HEAD or head[:6] not in (b"070701", b"070702"):
            raise KbuildError(
                "this is no cpio archive in the newc form, or it is cut short", reason="bad-cpio"
            )
        fields = [int(head[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
        inode, mode, size, length = fields[0], fields[1], fields[6], fields[11]
        name = archive[at + _HEAD : at + _HEAD + length - 1].decode("utf-8", "surrogateescape")
        start = at + _HEAD + length + -(_HEAD + length) % 4
        if name == "TRAILER!!!":
            break
        found.append((name.removeprefix("./"), inode, mode, archive[start : start + size]))
        at = start + size + -size % 4
    contents = {inode: data for _, inode, mode, data in found if data and stat.S_ISREG(mode)}
    return [
        (name, mode, contents.get(inode, data) if stat.S_ISREG(mode) else data)
        for name, inode, mode, data in found
        if name != "."
    ]


def _member(number: int, path: str, mode: int, data: Buffer, epoch: int) -> tuple[Buffer, ...]:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, epoch, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)


def _parents(paths: Iterable[str]) -> set[str]:
    return {path[:at] for path in paths for at, char in enumerate(path) if char == "/"}
