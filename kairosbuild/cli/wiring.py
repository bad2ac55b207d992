"""The composition root: how the engine's parts are made out of what was said on the command line.

Every part is made when it is first asked for, and its module imported then: a build in which nothing
changed asks for none of them.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.cli import given
from kairosbuild.execute.engine import Request, Wiring
from kairosbuild.store import version

if TYPE_CHECKING:
    from kairosbuild.cli.sharing import Sharing
    from kairosbuild.core.digest import Blob
    from kairosbuild.core.events import Events
    from kairosbuild.execute.executor import Executor
    from kairosbuild.execute.lock import Witness
    from kairosbuild.execute.results import Results
    from kairosbuild.graph.node import KindTable, Material
    from kairosbuild.recipe.declaration import Declaration, Recipe
    from kairosbuild.recipe.workspace import Workspace
    from kairosbuild.registry.configured import Configured
    from kairosbuild.registry.registries import Registries
    from kairosbuild.registry.retry import Limits
    from kairosbuild.registry.target import Target
    from kairosbuild.sources.download import Downloader
    from kairosbuild.sources.shared import Downloads
    from kairosbuild.store.store import Store


CLOCK = "KBUILD_VERIFY_CLOCK"
"""Where `kbuild verify` tells its second build which library to have for a clock, and by how many days."""


class Parts:
    """The parts of one run. `cancel` is set when it must stop."""

    def __init__(self, arguments: argparse.Namespace, events: Events) -> None:
        self.arguments = arguments
        self.events = events
        self.cancel = threading.Event()
        self._workspace: Workspace | None = None
        self._store: Store | None = None
        self._downloader: Downloader | None = None
        self._registries: Registries | None = None
        self._cache_registries: Registries | None = None
        self._sharing: Sharing | None = None
        self._results: Results | None = None

    # -- what the engine asks for ------------------------------------------------------------------

    def request(self) -> Request:
        """What was asked, in the engine's words."""
        said = self.arguments
        return Request(
            recipe=said.recipe,
            store=self.store_root(),
            vars=given.pairs(said.set, "--set"),
            nodes=tuple(getattr(said, "nodes", ()) or ()),
            settings=settings_files(said.recipe),
            jobs=getattr(said, "jobs", None) or 0,
            keep_going=getattr(said, "keep_going", False),
            locked=getattr(said, "locked", False) or getattr(said, "offline", False),
            copied=tuple(word.partition("=")[0] for word in getattr(said, "output", ()) or ()),
        )

    def wiring(self) -> Wiring:
        """How to make everything else."""
        return Wiring(
            recipe=self.recipe, kinds=kinds, tools=tools_declaration, store=lambda: self.store,
            executor=self._executor, materials=lambda _: self.materials, files=lambda _: self.file,
            results=lambda _: self.results, witness=self._witness, cancel=self.cancel,
        )  # fmt: skip

    def _witness(self) -> Witness | None:
        """Who judges the signatures of images, when the workspace asks for any."""
        if not self.workspace.policy.signed:
            return None
        from kairosbuild.cli.policies import Signatures

        return Signatures(self.workspace, self.registries, lambda: self._refuse_offline(["a signature"]))

    def recipe(self) -> Recipe:
        """The recipe, read and validated."""
        return given.recipe(self.arguments.recipe, self.arguments.set)

    def store_root(self) -> str:
        """The store's folder without opening it; the workspace is read only when nothing says where."""
        said = getattr(self.arguments, "cache_dir", None)
        return os.path.join(os.path.abspath(said or given.cache_dir(self.arguments.recipe)), version.VERSION)

    @property
    def workspace(self) -> Workspace:
        """The workspace in force."""
        if self._workspace is None:
            self._workspace = given.workspace(self.arguments.recipe)
        return self._workspace

    @property
    def store(self) -> Store:
        """The store."""
        if self._store is None:
            from kairosbuild.store.store import Store

            self._store = Store(Path(self.store_root()).parent)
        return self._store

    def _executor(self, store: Store) -> Executor:
        from kairosbuild.execute.sandbox import LocalExecutor

        library, _, days = os.environ.get(CLOCK, "").rpartition(":")
        if not library:
            return LocalExecutor(store)
        from kairosbuild.execute.elsewhen import Elsewhen

        return Elsewhen(LocalExecutor(store), store.cas.add_copy(Path(library)), int(days))

    # -- what is shared --------------------------------------------------------------------------------

    @property
    def sharing(self) -> Sharing:
        """The caches shared with other machines."""
        if self._sharing is None:
            from kairosbuild.cli.sharing import sharing

            self._sharing = sharing(self)
        return self._sharing

    @property
    def results(self) -> Results:
        """Where results are looked up and kept."""
        if self._results is None:
            from kairosbuild.execute.results import Results

            self._results = Results(self.store, self.sharing.readers, self.sharing.writers)
        return self._results

    def bring(self, blobs: Iterable[Blob]) -> None:
        """Have these blobs in the store: a result may be in a shared cache only. HostError `blob-evicted`."""
        lacking = self.store.cas.missing(blobs)
        if lacking and (gone := self.results.bring(lacking)):
            from kairosbuild.core.errors import HostError

            raise HostError(
                f"{min(gone).digest} is not in the store, and no cache has it any more",
                reason="blob-evicted", hint="run the build again",
            )  # fmt: skip

    def close(self) -> None:
        """Finish what is under way; nothing that was not opened is opened."""
        if self._sharing is not None:
            self._sharing.close(abandon=self.cancel.is_set())

    # -- the network ---------------------------------------------------------------------------------

    def materials(self, wanted: Sequence[Material]) -> None:
        """Bring pinned files into the store."""
        from kairosbuild.sources.download import Wanted

        missing = self._not_downloaded_before([one for one in wanted if not self.store.cas.has(_blob(one))])
        self._refuse_offline(one.uri for one in missing)
        for one in missing:
            if one.uri.startswith(_IMAGES):
                self._image_file(one.uri, one.digest, one.size)
        plain = [Wanted(m.uri, m.digest, m.size) for m in missing if not m.uri.startswith(_IMAGES)]
        if plain:
            self.downloader.get(plain)
        if missing and self.downloads:
            self.downloads.keep([one.digest for one in missing], self.store.cas)

    def _not_downloaded_before(self, wanted: Sequence[Material]) -> Sequence[Material]:
        """Take from the person's own downloads what is there; the rest."""
        if not wanted or self.downloads is None:
            return wanted
        found = self.downloads.take([_blob(one) for one in wanted], self.store.cas)
        return [one for one in wanted if one.digest not in found]

    @cached_property
    def downloads(self) -> Downloads | None:
        """What this person fetched before, in whatever workspace."""
        from kairosbuild.sources.shared import find

        return find(os.environ, self.workspace.cache.downloads)

    def file(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """One file, for the lock phase."""
        from kairosbuild.core.digest import Blob
        from kairosbuild.sources.download import Wanted

        if digest and size is not None:
            known = Blob(digest, size)
            if self.store.cas.has(known) or (self.downloads and self.downloads.take([known], self.store.cas)):
                return self.store.cas.path(digest)
        self._refuse_offline([uri])
        if uri.startswith(_IMAGES):
            found = self._image_file(uri, digest, size)
        else:
            found = self.downloader.get([Wanted(uri, digest or "", size)])[uri]
        if digest and self.downloads:
            self.downloads.keep([digest], self.store.cas)
        return self.store.cas.path(found.digest)

    @property
    def downloader(self) -> Downloader:
        """Downloads from mirrors and other addresses."""
        if self._downloader is None:
            from kairosbuild.sources import mirrors
            from kairosbuild.sources.download import Downloader, timeout_of

            said = given.pairs(self.arguments.mirror, "--mirror")
            found = mirrors.find(said, environ=os.environ, settings=[self.workspace.mirrors])
            self._downloader = Downloader(
                self.store.cas,
                found,
                timeout=timeout_of(os.environ),
                events=self.events,
                cancelled=self.cancel,
            )
        return self._downloader

    @property
    def registries(self) -> Registries:
        """Registries and layouts by what a person writes."""
        if self._registries is None:
            self._registries = registries(self.arguments, self.workspace)
        return self._registries

    def target(self, name: str) -> Target:
        """Where a reference leads. A workspace that says nothing of registries is not read for it."""
        if self._registries is None and not given.says(self.arguments.recipe, b"insecure", b"ca:"):
            return registries(self.arguments).open(name)[0]
        return self.registries.open(name)[0]

    def cache_target(self, name: str) -> Target:
        """A repository that is a cache: given up sooner than one that somebody waits for."""
        if self._cache_registries is None:
            from kairosbuild.registry.retry import Limits

            quick = Limits(connect=3.0, read=30.0, attempts=3, first=1)
            self._cache_registries = registries(self.arguments, self.workspace, quick)
        target, version = self._cache_registries.open(name)
        if version:
            from kairosbuild.core.errors import InputError

            raise InputError(
                f"the cache {name!r} has a tag", reason="bad-reference", hint="name the repository alone"
            )
        return target

    def _image_file(self, uri: str, digest: str | None, size: int | None) -> Blob:
        folder = self.store.cas.tmp()
        self.registries.fetch(uri, folder / "file", digest=digest, size=size)
        return self.store.cas.put_file(folder / "file")

    def _refuse_offline(self, uris: Iterable[str]) -> None:
        from kairosbuild.core.errors import HostError

        missing = list(uris)
        if missing and getattr(self.arguments, "offline", False):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise HostError(
                f"{missing[0]}{more} is not in the store, and --offline forbids fetching it",
                reason="offline", hint="run once without --offline",
            )  # fmt: skip


_IMAGES = ("oci://", "oci:", "oci-layout:")


def kinds() -> KindTable:
    """The table of kinds."""
    from kairosbuild.kinds.table import TABLE

    return TABLE


def tools_declaration(purpose: str) -> Declaration:
    """The node of a built-in tools tree."""
    from kairosbuild.kinds.tools import declaration_for

    return declaration_for(purpose)


def registries(
    arguments: argparse.Namespace, workspace: Workspace | None = None, limits: Limits | None = None
) -> Registries:
    """Registries, in plain HTTP where that was said."""
    from kairosbuild.registry.reference import parse
    from kairosbuild.registry.registries import Registries

    plain: list[str | None] = []
    if getattr(arguments, "plain_http", False):
        said = ("push", "reference", "cache_to")
        plain += [getattr(arguments, name, None) for name in said]
        plain += getattr(arguments, "cache_from", [])
    if workspace is not None and workspace.registry.insecure:
        plain.append(workspace.registry.to)
    if workspace is not None and workspace.cache.insecure:
        plain += [*workspace.cache.from_, workspace.cache.to]
    named = {parse(one).endpoint for one in plain if one and not one.startswith("oci:")}
    ca = os.path.join(workspace.root, workspace.registry.ca) if workspace and workspace.registry.ca else ""
    return Registries(insecure=named, ca=Path(ca) if ca else None, limits=limits, configured=_registries_conf)


def _registries_conf() -> Configured:
    from kairosbuild.registry.configured import load

    return load(os.environ)


def settings_files(recipe: str) -> tuple[str, ...]:
    """Every file that could say something about this recipe: a change in one, or a new one, counts."""
    from kairosbuild.recipe import places

    folders = places.above(os.getcwd()) + places.above(os.path.dirname(os.path.abspath(recipe)))
    names = dict.fromkeys(os.path.join(folder, places.FILE) for folder in folders)
    return (*names, places.user_file(os.environ))


def _blob(material: Material) -> Blob:
    from kairosbuild.core.digest import Blob

    return Blob(material.digest, material.size)
