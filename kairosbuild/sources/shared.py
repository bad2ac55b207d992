"""One person's downloads, by sha256, shared by all recipes and workspaces on a machine.

A workspace's store is its own and may be thrown away; what was fetched for it need not be fetched again for
the next. Nothing in the folder is believed: a file is hashed while it is copied into a store, and one that is
not what its name says is removed and fetched. Only what has a digest before it is fetched is kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kairosbuild.core.digest import Blob

VARIABLE = "KBUILD_DOWNLOADS"
UNUSED = 60 * 86400  # seconds after which a file that nobody took is removed
_DAY = 86400
_JOBS = 4


class Store(Protocol):
    """Where files are copied to and kept from; the store's CAS is one."""

    def add_copy(self, path: Path) -> Blob:
        """Store a copy of a file, hashed on the way."""

    def discard(self, digest: str) -> None:
        """Remove what should not be there."""

    def path(self, digest: str) -> Path:
        """Where a stored blob is."""


@dataclass(frozen=True, slots=True)
class Downloads:
    """The folder. A file's time of change tells when it was last of use."""

    folder: Path

    def take(self, wanted: Iterable[Blob], store: Store) -> set[str]:
        """Copy what is here into the store, in parallel; the digests that are there now."""
        here = [blob for blob in wanted if self._place(blob.digest).is_file()]
        if not here:
            return set()
        with ThreadPoolExecutor(min(_JOBS, len(here))) as pool:
            found = pool.map(lambda blob: self._taken(blob, store), here)
            return {blob.digest for blob, good in zip(here, found, strict=True) if good}

    def keep(self, digests: Iterable[str], store: Store) -> None:
        """Have these blobs of the store here too. A full or read-only disk is no failure of a build."""
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for digest in digests:
                self._keep(store.path(digest), self._place(digest))
            self._sweep()

    def _taken(self, wanted: Blob, store: Store) -> bool:
        place = self._place(wanted.digest)
        try:
            got = store.add_copy(place)
        except OSError:
            return False  # another run swept it
        if got == wanted:
            with suppress(OSError):
                os.utime(place)
            return True
        if got.digest != wanted.digest:
            place.unlink(missing_ok=True)
            store.discard(got.digest)
        return False

    def _keep(self, source: Path, place: Path) -> None:
        if place.exists():
            return
        temporary = place.with_name(f".{place.name}-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            shutil.copyfile(source, temporary)  # no hard link: a store's blob has no other name
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Once a day remove what nobody took for long, and what kills left behind."""
        mark, now = self.folder / "swept", time.time()
        if mark.exists() and now - mark.stat().st_mtime < _DAY:
            return
        mark.touch()
        for file in self.folder.iterdir():
            age = now - file.lstat().st_mtime
            if file != mark and age > (_DAY if file.name.startswith(".") else UNUSED):
                file.unlink(missing_ok=True)

    def _place(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")


def find(environ: Mapping[str, str], setting: str | None = None) -> Downloads | None:
    """The folder in force: the environment's word, the settings', the person's cache folder. "" means none."""
    said = environ.get(VARIABLE, setting)
    if said == "":
        return None
    if said is not None:
        return Downloads(Path(said).expanduser().absolute())
    base = environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / ".cache"
    return Downloads(home / "kairosbuild" / "downloads")
