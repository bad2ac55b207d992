"""The store: blobs, records, trees and locks under one folder, and what keeps them in order."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.store.cas import Cas
from kairosbuild.store.lease import Lease, Leases
from kairosbuild.store.locks import Locks

if TYPE_CHECKING:
    from kairosbuild.store.actions import ActionCache
    from kairosbuild.store.statcache import StatCache
    from kairosbuild.store.trees import Trees

VERSION = "v1"  # of the layout; another one lives beside it
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of kairosbuild: https://bford.info/cachedir/\n"


class Store:
    """A store at `home` (made if need be). Opening costs next to nothing; parts open when first used."""

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.abspath(home))  # noqa: PTH100 (does not resolve links: a linked cache stays one)
        self.root = self.home / VERSION
        if not os.path.exists(f"{self.home}/CACHEDIR.TAG"):  # noqa: PTH110
            os.makedirs(self.home, exist_ok=True)  # noqa: PTH103
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

    def close(self) -> None:
        """Give file handles back."""
        if "actions" in self.__dict__:
            self.actions.close()
        self.leases.gate.close()
