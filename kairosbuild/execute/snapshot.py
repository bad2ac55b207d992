"""Sources as they were hashed, with the file identities that tell later whether they still are.

An identity holds what a write changes: device, inode, size, mtime, ctime, mode. None of it reaches
a key; there only logical paths, exec bits and contents stand.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, Origin
from kairosbuild.graph.node import Reads, SourceFile

Identity = tuple[int, int, int, int, int, int]
Hasher = Callable[[str], Blob]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One source: its files in the order of their logical paths, and every path looked at with its identity.

    `base` is the absolute path the logical ones are relative to; `taken` is when the looking began, in
    nanoseconds since 1970.
    """

    base: str
    files: tuple[SourceFile, ...]
    seen: tuple[tuple[str, Identity], ...]
    taken: int = 0

    def path(self, logical: str) -> Path:
        """Where a file of it lies."""
        return Path(self.base, logical) if logical else Path(self.base)

    def unchanged(self) -> bool:
        """Whether everything looked at still has the identity it had."""
        return all(identity(path) == before for path, before in self.seen)


def identity(path: str) -> Identity | None:
    """The identity of a path, links not followed; None when there is nothing."""
    try:
        s = os.lstat(path)
    except OSError:
        return None
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode)


def young(seen: Identity, now: int) -> bool:
    """Whether a write after `now` (nanoseconds since 1970) might leave this identity as it is.

    Clocks of file systems tick in 10 ms at most on Linux, in 2 s on FAT; a whole second hints at such a one.
    """
    newest = max(seen[3], seen[4])
    return newest > now - (2_000_000_000 if newest % 1_000_000_000 == 0 else 20_000_000)


def take(
    root: str, source: str, hasher: Hasher, origin: Origin | None = None, reads: Reads | None = None
) -> Snapshot:
    """Look at a source, a file or a folder of the workspace `root`, and hash what is in it (and is read of it).

    InputErrors: `source-missing`, `source-outside` (it leads out of the workspace by a link),
    `source-special` (a socket, device or pipe), `source-name` (a name that is no UTF-8).
    """
    taken = time.time_ns()
    top = os.path.join(root, source)  # noqa: PTH118 - ten thousand sources: strings are quicker
    base = os.path.realpath(top)
    if base != top:
        _inside(root, base, source, origin)
    found = identity(base)
    if found is None:
        raise InputError(
            f"no such file or folder: {source}",
            reason="source-missing",
            origin=origin,
            hint="sources are relative to the workspace's folder",
        )
    seen = [(base, found)] if base == top else [(base, found), *_links(root, source)]
    files: list[SourceFile] = []
    if stat.S_ISDIR(found[5]):
        for logical, path, one in _walk(base, "", origin, reads.keep if reads else _all):
            seen.append((path, one))
            files.append(_file(logical, path, one, hasher, origin))
    else:
        files.append(_file("", base, found, hasher, origin))
    for path in reads.asked if reads else ():
        if asked := identity(path):
            seen.append((path, asked))
    return Snapshot(base, tuple(sorted(files, key=_logical)), tuple(seen), taken)


def _all(logical: str, folder: bool) -> bool:
    return True


def _logical(file: SourceFile) -> str:
    return file.logical


def _inside(root: str, base: str, source: str, origin: Origin | None) -> None:
    home = os.path.realpath(root)
    if base != home and not base.startswith(home + os.sep):
        raise InputError(
            f"{source} leads out of the workspace",
            reason="source-outside",
            origin=origin,
            hint="only what lies in the workspace may go into a build",
        )


def _links(root: str, source: str) -> Iterator[tuple[str, Identity]]:
    """The links on the way to a source: turning one is a change too."""
    path = root
    for part in source.split("/"):
        path = f"{path}{os.sep}{part}"
        found = identity(path)
        if found and stat.S_ISLNK(found[5]):
            yield path, found


def _walk(
    folder: str, prefix: str, origin: Origin | None, keep: Callable[[str, bool], bool]
) -> Iterator[tuple[str, str, Identity]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            logical = prefix + entry.name
            _utf8(logical, origin)
            found = identity(entry.path)
            if found is None:
                continue  # removed while we looked; the folder's own identity tells
            folder_too = stat.S_ISDIR(found[5])
            if not keep(logical, folder_too):
                continue
            yield logical, entry.path, found
            if folder_too:
                yield from _walk(entry.path, logical + "/", origin, keep)


def _file(logical: str, path: str, found: Identity, hasher: Hasher, origin: Origin | None) -> SourceFile:
    mode = found[5]
    if stat.S_ISREG(mode):
        return SourceFile(logical, "file", 0o755 if mode & 0o111 else 0o644, _hash(path, hasher, origin))
    if stat.S_ISDIR(mode):
        return SourceFile(logical, "dir", 0o755)
    if stat.S_ISLNK(mode):
        return SourceFile(logical, "link", 0o777, None, os.readlink(path))  # noqa: PTH115 - text, not Path
    raise InputError(f"{path} is neither file, folder nor link", reason="source-special", origin=origin)


def _hash(path: str, hasher: Hasher, origin: Origin | None) -> Blob:
    try:
        return hasher(path)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise InputError(message, reason="source-unreadable", origin=origin) from error


def _utf8(name: str, origin: Origin | None) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the name {name!r} is not UTF-8", reason="source-name", origin=origin) from None
