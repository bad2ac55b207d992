"""A folder as entries, and entries as a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.errors import InputError
from kairosbuild.oci.entry import OPAQUE, Entry, EntryType, keeps_xattr, whiteout_of
from kairosbuild.oci.extract import extract
from kairosbuild.oci.layer import write_layer, write_settled

__all__ = ["extract", "scan", "write_tree"]

_TYPES: dict[int, EntryType] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_OVERLAY = ("user.overlay.", "trusted.overlay.")
_V3_CAPABILITY = 24  # bytes; the form that names the user namespace it was set in


def scan(root: Path, *, overlay: bool = False) -> Iterator[tuple[Entry, Path | None]]:
    """Everything in this folder as the entries of a layer, sorted; the path is where a file's bytes are.

    Hard links are told by device and inode, sockets are left out. With `overlay`, the folder is
    the upper one of an overlayfs (mounted with userxattr or not), and its whiteouts and opaque folders come
    out as OCI's. Raises InputError (`tree-whiteout`, `overlay-redirect`) for what OCI cannot say.
    """
    return ((entry, Path(path) if path else None) for entry, path in _walk(root, overlay))


def write_tree(
    root: Path, out: BinaryIO, epoch: int, *, overlay: bool = False, flat_time: bool = False
) -> bytes:
    """Write the canonical layer of this folder, return its index; quicker than `write_layer(scan(root))`."""
    write = write_layer if overlay else write_settled  # whiteouts sort elsewhere than what they hide
    return write(_walk(root, overlay), out, epoch, flat_time=flat_time)


def _walk(root: Path, overlay: bool) -> Iterator[tuple[Entry, str | None]]:
    first: dict[tuple[int, int], str] = {}
    base = os.fspath(root)
    todo = _children(base, "")
    while todo:
        path, full, info = todo.pop()
        kind = _TYPES.get(stat.S_IFMT(info.st_mode))
        if kind is None:
            continue
        if overlay and kind == "char" and info.st_rdev == 0:  # before links: overlayfs links its whiteouts
            yield Entry(whiteout_of(path), "file", mode=0), None
            continue
        if info.st_nlink > 1 and kind != "dir":
            head = first.setdefault((info.st_dev, info.st_ino), path)
            if head != path:
                yield _link(path, head, info), None
                continue
        if ".wh." in path and path.rpartition("/")[2].startswith(".wh."):
            raise InputError(f"{path!r} has a name that means a whiteout in a layer", reason="tree-whiteout")
        names = os.listxattr(full, follow_symlinks=False)
        if overlay and _opaque(path, full, names):
            yield Entry(f"{path}/{OPAQUE}", "file", mode=0), None
        target = os.readlink(full) if kind == "symlink" else ""  # noqa: PTH115  # 60,000 Path objects cost
        entry = _entry(path, kind, info, target, _xattrs(full, names) if names else ())
        yield entry, full if kind == "file" else None
        if kind == "dir":
            todo += _children(full, path)


def _children(full: str, path: str) -> list[tuple[str, str, os.stat_result]]:
    """What is in a folder, last first, so that a stack of them is popped in order."""
    prefix = path + "/" if path else ""
    with os.scandir(full) as found:
        names = [(item.name, item.path, item.stat(follow_symlinks=False)) for item in found]
    names.sort(reverse=True)
    return [(prefix + name, where, info) for name, where, info in names]


def _entry(
    path: str, kind: EntryType, info: os.stat_result, target: str, xattrs: tuple[tuple[str, bytes], ...]
) -> Entry:
    major = minor = 0
    if kind in ("char", "block"):
        major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
    return Entry(
        path,
        kind,
        info.st_mode & 0o7777,
        info.st_uid,
        info.st_gid,
        info.st_size if kind == "file" else 0,
        target,
        xattrs,
        int(info.st_mtime),
        major,
        minor,
    )


def _link(path: str, head: str, info: os.stat_result) -> Entry:
    return Entry(
        path,
        "hardlink",
        info.st_mode & 0o7777,
        info.st_uid,
        info.st_gid,
        target=head,
        mtime=int(info.st_mtime),
    )


def _xattrs(full: str, names: list[str]) -> tuple[tuple[str, bytes], ...]:
    return tuple(
        (name, _plain(name, os.getxattr(full, name, follow_symlinks=False)))
        for name in sorted(names)
        if keeps_xattr(name)
    )


def _plain(name: str, value: bytes) -> bytes:
    """File capabilities without the user namespace they were set in (linux/capability.h, v3 → v2)."""
    if name == "security.capability" and len(value) == _V3_CAPABILITY:
        return value[:3] + b"\x02" + value[4:20]
    return value


def _opaque(path: str, full: str, names: list[str]) -> bool:
    """Whether overlayfs marked this folder as hiding what is below it."""
    for name in names:
        if not name.startswith(_OVERLAY):
            continue
        what = name.rpartition(".")[2]
        if what in ("redirect", "metacopy"):
            raise InputError(
                f"{path!r} is only a reference to a lower layer ({name})",
                reason="overlay-redirect",
                hint="mount the overlay with redirect_dir=off,metacopy=off",
            )
        if what == "opaque" and os.getxattr(full, name, follow_symlinks=False) == b"y":
            return True
    return False
