"""A layer as a folder, made so that nothing is ever written outside of that folder.

Every step down is `openat` with O_NOFOLLOW from the folder's own descriptor, so no link, whether the
tar brings it or it was there before, leads anywhere.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from kairosbuild.core.digest import CHUNK
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.oci.entry import Entry, hidden_by, is_opaque, is_whiteout
from kairosbuild.oci.reader import read_tar

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


Owners = Literal["kept", "elsewhere", "dropped"]


def extract(tar: Path, into: Path, *, owners: Owners, overlay: bool) -> None:
    """Unpack a layer (an uncompressed tar) into a folder, which is made if it is missing.

    `kept`: owners, set-id bits, file capabilities and device nodes are kept, which takes root or a
    user namespace; a device beneath dev/ that the kernel denies is left out. `elsewhere`: all of that but
    the owners. `dropped`: all belongs to the caller, who can read every file and enter every folder, and
    nothing has rights of its own. With `overlay`, whiteouts become those of
    overlayfs (userxattr); else they stay the empty files they are in a layer.
    A folder that the tar only implies gets 0755. Raises InputError: `extract-link` (a step through
    what is no folder), `extract-exists` (a file where a folder with content is).
    """
    into.mkdir(parents=True, exist_ok=True)
    with tar.open("rb") as stream, _Tree(into, owners, overlay) as tree:
        for entry, content in read_tar(stream):
            tree.add(entry, content)


class _Tree:
    """The folder being filled; descriptors of the current path stay open, as most entries share it."""

    def __init__(self, into: Path, owners: Owners, overlay: bool) -> None:
        self._chown = owners == "kept"
        self._rights = owners != "dropped"
        self._overlay = overlay
        self._root = os.open(into, _FOLDER)
        self._open: list[tuple[str, int]] = []
        self._folders: dict[str, Entry] = {}

    def __enter__(self) -> _Tree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(os.close, self._root)
            stack.callback(self._leave, 0)
            if kind is None:
                self._settle_folders()

    def add(self, entry: Entry, content: BinaryIO | None) -> None:
        """Make one entry."""
        folder, _, name = entry.path.rpartition("/")
        at = self._enter(folder)
        if self._overlay and is_whiteout(entry.path):
            self._whiteout(entry, at, folder)
        elif entry.type == "dir":
            self._folder(entry, at, name)
        else:
            self._clear(entry, at, name)
            self._leaf(entry, content, at, name)

    def _folder(self, entry: Entry, at: int, name: str) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=at)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=at)
                os.mkdir(name, 0o755, dir_fd=at)
        self._folders[entry.path] = entry  # settled last: its mode may forbid writing

    def _clear(self, entry: Entry, at: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            self._clear_folder(entry, at, name)

    def _clear_folder(self, entry: Entry, at: int, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=at)
        except OSError as error:
            raise InputError(
                f"{entry.path!r} cannot replace what is there: {error.strerror}", reason="extract-exists"
            ) from None
        self._folders.pop(entry.path, None)

    def _leaf(self, entry: Entry, content: BinaryIO | None, at: int, name: str) -> None:
        if entry.type == "hardlink":
            self._hardlink(entry, at, name)
            return
        if entry.type == "file":
            assert content is not None
            fd = os.open(name, _NEW, 0o600, dir_fd=at)
            try:
                while chunk := content.read(CHUNK):
                    _write(fd, chunk)
                self._settle(entry, fd)
            finally:
                os.close(fd)
            return
        if entry.type == "symlink":
            os.symlink(entry.target, name, dir_fd=at)
        elif entry.type == "fifo":
            os.mkfifo(name, 0o600, dir_fd=at)
        elif not self._device(entry, at, name):
            return
        self._settle_special(entry, at, name)

    def _device(self, entry: Entry, at: int, name: str) -> bool:
        if not self._rights:
            return False
        kind = stat.S_IFCHR if entry.type == "char" else stat.S_IFBLK
        try:
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=at)
        except PermissionError:
            if entry.path.startswith("dev/"):
                return False  # a user namespace has no devices of its own; whoever runs the tree mounts /dev
            raise
        return True

    def _hardlink(self, entry: Entry, at: int, name: str) -> None:
        folder, _, target = entry.target.rpartition("/")
        source = self._walk(folder, entry)
        try:
            if stat.S_ISDIR(os.stat(target, dir_fd=source, follow_symlinks=False).st_mode):
                raise InputError(f"the hard link {entry.path!r} names a folder", reason="extract-link")
            os.link(target, name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            raise InputError(
                f"the hard link {entry.path!r} names {entry.target!r}, which is not there",
                reason="extract-link",
            ) from None
        finally:
            os.close(source)

    def _whiteout(self, entry: Entry, at: int, folder: str) -> None:
        if is_opaque(entry.path):
            where = os.open(".", _FOLDER, dir_fd=at)
            try:
                os.setxattr(where, "user.overlay.opaque", b"y")
            except OSError as error:
                raise HostError(
                    f"an opaque folder cannot be made here: {error.strerror}",
                    reason="no-user-xattr",
                    hint="the store needs a filesystem with user extended attributes (ext4, xfs, btrfs)",
                ) from None
            finally:
                os.close(where)
            return
        name = hidden_by(entry.path).rpartition("/")[2]
        with suppress(FileExistsError):  # the layer replaces what it hides
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=at)

    # Metadata. Owner first, because it clears set-id bits and capabilities; time last.

    def _settle(self, entry: Entry, fd: int) -> None:
        mode = entry.mode
        if self._chown:
            os.fchown(fd, entry.uid, entry.gid)
        elif not self._rights:
            mode = (mode & 0o1777) | (0o700 if entry.type == "dir" else 0o600)
        os.fchmod(fd, mode)
        for key, value in entry.xattrs:
            self._xattr(fd, key, value)
        os.utime(fd, (entry.mtime, entry.mtime))

    def _settle_special(self, entry: Entry, at: int, name: str) -> None:
        if self._chown:
            os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        if entry.type != "symlink":
            os.chmod(name, entry.mode, dir_fd=at)
        os.utime(name, (entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _xattr(self, fd: int, key: str, value: bytes) -> None:
        try:
            if self._rights or key.startswith("user."):
                os.setxattr(fd, key, value)
        except OSError:
            if self._rights:
                raise

    def _settle_folders(self) -> None:
        for path in sorted(self._folders, key=lambda path: -path.count("/")):
            entry = self._folders[path]
            fd = self._walk(path, entry)
            try:
                self._settle(entry, fd)
            finally:
                os.close(fd)

    # Steps.

    def _enter(self, folder: str) -> int:
        """The descriptor of a folder, made where it is missing; kept open while entries stay beneath it."""
        names = folder.split("/") if folder else []
        depth = 0
        while depth < len(names) and depth < len(self._open) and self._open[depth][0] == names[depth]:
            depth += 1
        self._leave(depth)
        for name in names[depth:]:
            at = self._open[-1][1] if self._open else self._root
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=at)
                os.chmod(name, 0o755, dir_fd=at)  # noqa: S103  # whatever the umask
            self._open.append((name, _step(at, name, folder)))
        return self._open[-1][1] if self._open else self._root

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def _walk(self, folder: str, entry: Entry) -> int:
        """A new descriptor of a folder that exists."""
        fd = os.dup(self._root)
        for name in folder.split("/") if folder else ():
            try:
                below = _step(fd, name, entry.path)
            finally:
                os.close(fd)
            fd = below
        return fd


def _step(at: int, name: str, path: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=at)
    except (NotADirectoryError, FileNotFoundError, OSError) as error:
        raise InputError(
            f"the way to {path!r} leads through {name!r}: {error.strerror}",
            reason="extract-link",
            hint="a layer is unpacked without following links",
        ) from None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
