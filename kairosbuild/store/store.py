"""The store: blobs, records, trees and locks under one folder, and what keeps them in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.digest import Blob
from kairosbuild.store.cas import Cas
from kairosbuild.store.lease import Lease, Leases
from kairosbuild.store.locks import Locks
from kairosbuild.store.version import VERSION

if TYPE_CHECKING:
    from kairosbuild.store.actions import ActionCache
    from kairosbuild.store.gc import Swept
    from kairosbuild.store.statcache import StatCache
    from kairosbuild.store.survey import Survey
    from kairosbuild.store.trees import Trees
    from kairosbuild.store.verify import Verified

_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of kairosbuild: https://bford.info/cachedir/\n"
)


class Store:
    """A store at `home` (made if need be). Opening costs next to nothing; parts open when first used."""

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.abspath(home))  # does not resolve links: a linked cache stays one
        self.root = self.home / VERSION
        if not os.path.exists(f"{self.home}/CACHEDIR.TAG"):
            os.makedirs(self.home, exist_ok=True)
            (self.home / "CACHEDIR.TAG").write_bytes(_TAG)
        self.leases = Leases(self.root)
        self.cas = Cas(self.root, self.leases)

    @cached_property
    def actions(self) -> ActionCache:
        """The action cache."""
        from kairosbuild.store.actions import ActionCache

        return ActionCache(self.root / "actions", self.cas)

    @cached_property
    def locks(self) -> Locks:
        """The locks, by key."""
        return Locks(self.root / "locks")

    @cached_property
    def trees(self) -> Trees:
        """The directory trees."""
        from kairosbuild.store.trees import Trees

        return Trees(self.root / "trees", self.cas, self.locks)

    @cached_property
    def sources(self) -> StatCache:
        """What source files held when they were last looked at."""
        from kairosbuild.store.statcache import StatCache

        return StatCache(self.root / "sources")

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Single flight: hold this key for a block. Look the key up again inside."""
        return self.locks.hold(key)

    def lease(self, who: str = "") -> AbstractContextManager[Lease]:
        """Hold a lease for a block: nothing that is found or stored meanwhile is collected."""
        return self.leases.hold(who)

    # -- order ---------------------------------------------------------------------------------

    def pin(self, name: str, blobs: Iterable[Blob]) -> None:
        """Keep these blobs, and what they name, whatever their age, until `unpin`."""
        write_bytes(self._pin(name), "".join(f"{blob.digest}\n" for blob in blobs).encode())

    def unpin(self, name: str) -> None:
        """Let go of what was pinned under this name."""
        self._pin(name).unlink(missing_ok=True)

    def pinned(self) -> set[str]:
        """Hex digests of all pinned blobs."""
        pins = self.root / "pins"
        files = [path for path in pins.iterdir() if not path.name.startswith(".")] if pins.is_dir() else []
        return {line[7:] for path in files for line in path.read_text().split()}

    def gc(
        self,
        *,
        keep_bytes: int | None = None,
        keep_age: float | None = None,
        grace: float = 86_400.0,
        dry_run: bool = False,
    ) -> Swept:
        """Remove what is not in use, not pinned, older than `grace` seconds and no part of a kept record.

        Records are kept from the most recently used on, as long as they were used within `keep_age`
        seconds and their blobs fit into `keep_bytes` of disk (no limit: None).
        """
        from kairosbuild.store.gc import collect

        return collect(self, keep_bytes=keep_bytes, keep_age=keep_age, grace=grace, dry_run=dry_run)

    def stat(self) -> Survey:
        """How much of what is here."""
        from kairosbuild.store.survey import survey

        return survey(self)

    def verify(self, progress: Callable[[int], None] = lambda size: None) -> Verified:
        """Rehash everything; what is damaged is set aside and becomes a miss. `progress` hears bytes done."""
        from kairosbuild.store.verify import verify

        return verify(self, progress)

    def generation(self) -> str:
        """A word that changes when something may have been removed: what was seen before counts no more."""
        try:
            return (self.root / "generation").read_text()
        except FileNotFoundError:
            return ""

    def renew(self) -> None:
        """Change the generation."""
        write_bytes(self.root / "generation", os.urandom(8).hex().encode())

    def _pin(self, name: str) -> Path:
        return self.root / "pins" / hashlib.sha256(name.encode()).hexdigest()[:40]

    def close(self) -> None:
        """Give file handles back."""
        if "actions" in self.__dict__:
            self.actions.close()
        self.leases.gate.close()
