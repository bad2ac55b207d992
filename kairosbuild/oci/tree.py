"""A folder as entries, and entries as a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.errors import InputError
from kairosbuild.oci.behind import Behind
from kairosbuild.oci.entry import OPAQUE, WHITEOUT, Entry, EntryType, keeps_xattr
from kairosbuild.oci.extract import extract
from kairosbuild.oci.layer import Writer

__all__ = ["extract", "scan", "write_tree"]

_TYPES: dict[int, EntryType] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OVERLAY = ("user.overlay.", "trusted.overlay.")
_V3_CAPABILITY = 24  # bytes; the form that names the user namespace it was set in


def scan(root: Path, *, overlay: bool = False) -> Iterator[tuple[Entry, Path | None]]:
    """Everything in this folder as the entries of a layer, sorted; the path is where a file's bytes are.

    Hard links are told by device and inode, sockets are left out. With `overlay`, the folder is
    the upper one of an overlayfs (mounted with userxattr or not), and its whiteouts and opaque folders come
    out as OCI's. Raises InputError (`tree-whiteout`, `overlay-redirect`) for what OCI cannot say.
    """
    links: _Links = {}
    for path, item in _walk(root, overlay):
        if item is None:
            yield Entry(path, "file", mode=0), None
        elif entry := _entry(path, item.path, item.stat(follow_symlinks=False), item.path, links):
            yield entry, Path(item.path) if entry.type == "file" else None


def write_tree(
    root: Path,
    out: BinaryIO,
    epoch: int,
    *,
    overlay: bool = False,
    flat_time: bool = False,
    owners: Mapping[str, tuple[int, int]] | None = None,
) -> bytes:
    """Write the canonical layer of this folder, return its index; quicker than `write_layer(scan(root))`.

    Every file is opened before it is looked at: one way to it instead of three. `owners` says who owns
    what (user and group by path) where the file system does not.
    """
    owners = owners or {}
    links: _Links = {}
    with Behind(out) as sink:
        writer = Writer(sink, epoch, flat_time=flat_time)
        for path, item in _walk(root, overlay):
            if item is None:
                writer.add(Entry(path, "file", mode=0), None)
            elif item.is_file(follow_symlinks=False):
                fd = os.open(item.path, _READ)
                try:
                    _add_file(path, item.path, fd, links, writer, owners.get(path))
                finally:
                    os.close(fd)
            elif entry := _entry(path, item.path, item.stat(follow_symlinks=False), item.path, links):
                writer.add(_owned(entry, owners.get(path)), None)
        return writer.end()


_Links = dict[tuple[int, int], str]
"""The first path of each file with several, by device and inode."""


def _add_file(
    path: str, full: str, fd: int, links: _Links, writer: Writer, owner: tuple[int, int] | None
) -> None:
    info = os.fstat(fd)
    if info.st_nlink == 1 and stat.S_ISREG(info.st_mode) and owner is None and not os.listxattr(fd):
        writer.add_file(path, info, fd)
    elif entry := _entry(path, full, info, fd, links):
        writer.add(_owned(entry, owner), fd if entry.type == "file" else None)


def _owned(entry: Entry, owner: tuple[int, int] | None) -> Entry:
    return replace(entry, uid=owner[0], gid=owner[1]) if owner else entry


def _walk(root: Path, overlay: bool) -> Iterator[tuple[str, _Item]]:
    """Everything in a folder, in the order of a layer; whiteouts as the paths they have there, without an item."""
    todo = _children(os.fspath(root), "", overlay)
    while todo:
        path, item = todo.pop()
        yield path, item
        if item is not None and item.is_dir(follow_symlinks=False):
            todo += _children(item.path, path + "/", overlay)


_Item = os.DirEntry[str] | None


def _children(folder: str, prefix: str, overlay: bool) -> list[tuple[str, _Item]]:
    """What is in a folder, last first, so that a stack of them is popped in order."""
    found: list[tuple[str, _Item]] = []
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith(WHITEOUT):
                raise InputError(
                    f"{prefix + item.name!r} has a name that means a whiteout in a layer",
                    reason="tree-whiteout",
                )
            if overlay and _is_whiteout(item):
                found.append((prefix + WHITEOUT + item.name, None))
            else:
                found.append((prefix + item.name, item))
    if overlay and prefix and _opaque(prefix, folder):
        found.append((prefix + OPAQUE, None))
    found.sort(key=itemgetter(0), reverse=True)
    return found


def _is_whiteout(item: os.DirEntry[str]) -> bool:
    """Whether overlayfs hides something by this; it links its whiteouts, so do not take them for hard links."""
    if item.is_file(follow_symlinks=False) or item.is_dir(follow_symlinks=False) or item.is_symlink():
        return False
    info = item.stat(follow_symlinks=False)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _entry(path: str, full: str, info: os.stat_result, where: str | int, links: _Links) -> Entry | None:
    """The entry of what is at `full`; `where` is that or its descriptor. None for what no layer holds."""
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    target, major, minor = "", 0, 0
    if kind == "symlink":
        target = os.readlink(full)  # noqa: PTH115  # 60,000 Path objects cost
    elif kind in ("char", "block"):
        major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    if info.st_nlink > 1 and kind != "dir":
        first = links.setdefault((info.st_dev, info.st_ino), path)
        if first != path:
            kind, target, major, minor = "hardlink", first, 0, 0
    return Entry(
        path,
        kind,
        info.st_mode & 0o7777,
        info.st_uid,
        info.st_gid,
        info.st_size if kind == "file" else 0,
        target,
        _xattrs(where) if kind != "hardlink" else (),
        int(info.st_mtime),
        major,
        minor,
    )


def _xattrs(where: str | int) -> tuple[tuple[str, bytes], ...]:
    follow = isinstance(where, int)  # a descriptor is what it is
    names = os.listxattr(where, follow_symlinks=follow)
    if not names:
        return ()
    return tuple(
        (name, _plain(name, os.getxattr(where, name, follow_symlinks=follow)))
        for name in sorted(names)
        if keeps_xattr(name)
    )


def _plain(name: str, value: bytes) -> bytes:
    """File capabilities without the user namespace they were set in (linux/capability.h, v3 → v2)."""
    if name == "security.capability" and len(value) == _V3_CAPABILITY:
        return value[:3] + b"\x02" + value[4:20]
    return value


def _opaque(path: str, full: str) -> bool:
    """Whether overlayfs marked this folder as hiding what is below it."""
    for name in os.listxattr(full, follow_symlinks=False):
        if not name.startswith(_OVERLAY):
            continue
        what = name.rpartition(".")[2]
        if what in ("redirect", "metacopy"):
            raise InputError(
                f"{path.rstrip('/')!r} is only a reference to a lower layer ({name})",
                reason="overlay-redirect",
                hint="mount the overlay with redirect_dir=off,metacopy=off",
            )
        if what == "opaque" and os.getxattr(full, name, follow_symlinks=False) == b"y":
            return True
    return False
