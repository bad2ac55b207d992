"""Directory trees made from blobs, kept because making them is slow: the roots that actions run in.

A tree is built in a temporary folder and renamed, so it is there whole or not at all. Its marker
holds the boot it was made in: after another boot the tree is made anew, since its many files were
never synced and a power cut could have left some of them empty.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kairosbuild.store.cas import Cas
from kairosbuild.store.locks import Locks
from kairosbuild.store.space import full

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_STALE = 3600.0  # seconds: how exact "last used" is


class Trees:
    """The trees of one store. `remover` deletes what belongs to mapped users, which needs their namespace."""

    def __init__(self, root: Path, cas: Cas, locks: Locks) -> None:
        self.root = root
        self._cas = cas
        self._locks = locks
        self.remover: Callable[[Path], None] | None = None
        os.makedirs(root, exist_ok=True)

    def get(self, name: str, make: Callable[[Path], None], owned: bool = False) -> Path:
        """The tree of this name, made by `make(empty_folder)` if it is not here. Read it, never write it.

        `owned` says that files in it belong to other users than ours; such a tree is another one than
        the tree of the same name without owners.
        """
        place = self._place(name, owned)
        if not self._ready(place):
            with self._locks.hold(f"tree:{place.name}"):
                if not self._ready(place):
                    self._make(place, make)
        return place / "root"

    def used(self, place: Path) -> int:
        """When this tree was last asked for (Unix nanoseconds); 0 for what is no whole tree of this boot."""
        try:
            marker = place / "complete"
            return marker.stat().st_mtime_ns if marker.read_text() == _boot() else 0
        except OSError:
            return 0

    def unhook(self, place: Path) -> Path:
        """Take a tree out of its place at once, to be destroyed at leisure; returns where it went."""
        doomed = self._cas.tmp()
        with suppress(FileNotFoundError):
            place.rename(doomed / "doomed")
        return doomed

    def destroy(self, folder: Path) -> bool:
        """Delete a file or a folder with all that is in it, whoever owns it."""
        with suppress(PermissionError):
            _delete(folder)
            return True
        if self.remover is None:
            return False
        self.remover(folder)
        return not folder.exists()

    def _place(self, name: str, owned: bool) -> Path:
        plain = name.replace(":", "-")
        if not _PLAIN.fullmatch(plain):
            plain = hashlib.sha256(name.encode()).hexdigest()
        return self.root / (plain + (".owned" if owned else ""))

    def _ready(self, place: Path) -> bool:
        """Whether the tree is whole; it is then named in the lease and counts as used."""
        leases = self._cas.leases
        thing = f"tree:{place.name}"
        if leases.current and thing in leases.current.named:
            return True
        with leases.gate:
            marker = f"{place}/complete"
            try:
                with open(marker) as stream:
                    whole = stream.read() == _boot()
                if whole and time.time() - os.stat(marker).st_mtime > _STALE:
                    os.utime(marker)
            except (FileNotFoundError, NotADirectoryError):
                return False
            if whole and leases.current:
                leases.current.names((thing,))
            return whole

    def _make(self, place: Path, make: Callable[[Path], None]) -> None:
        work = self._cas.tmp()
        try:
            (work / "root").mkdir()
            make(work / "root")
            (work / "complete").write_text(_boot())
            if place.exists():
                self.destroy(self.unhook(place))
            work.rename(place)
        except BaseException as problem:
            self.destroy(work)
            raise (full(problem) if isinstance(problem, OSError) else None) or problem from problem
        with self._cas.leases.gate:
            if self._cas.leases.current:
                self._cas.leases.current.names((f"tree:{place.name}",))


@functools.cache
def _boot() -> str:
    """This boot of this machine, as Linux names it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _delete(path: Path) -> None:
    """Delete a file, or a folder even where folders of ours in it let nobody write."""
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        try:
            shutil.rmtree(path)
        except PermissionError:
            _unlock(path)
            shutil.rmtree(path)


def _unlock(folder: Path) -> None:
    closed = [os.fspath(folder)]
    while closed:
        here = closed.pop()
        os.chmod(here, 0o700)
        closed += [entry.path for entry in os.scandir(here) if entry.is_dir(follow_symlinks=False)]
