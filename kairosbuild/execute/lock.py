"""The lock phase: everything mutable is resolved once, in build order, and read from the lock file after.

An entry carries a checksum of what it was resolved from: the kind and its version, the spec, and the
locks of the nodes it names. While that holds the entry is taken as it is. A node whose kind resolves
nothing has no entry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.core.events import Events
from kairosbuild.execute.derive import derive
from kairosbuild.execute.executor import Executor
from kairosbuild.execute.nodes import TOOLS, Node, platform_of
from kairosbuild.execute.results import Results
from kairosbuild.execute.selection import bare
from kairosbuild.execute.task import remove_tree
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.graph.node import Locked, Locker, Material, Outputs
from kairosbuild.recipe.declaration import Recipe
from kairosbuild.recipe.lockfile import LockEntry, LockFile, Pin, of_slot, slot
from kairosbuild.store.store import Store

FORMAT = 1


class Fetcher(Protocol):
    """The way to files outside. The only one."""

    def __call__(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """Get a file by a `Material`-style uri; verified when its digest is known."""


class Witness(Protocol):
    """Who must have signed what a node takes from elsewhere."""

    def __call__(self, node: Node, known: Mapping[str, str], frozen: bool) -> Mapping[str, str]:
        """The signatures to record (image's digest → key), given those known.

        Raises InputError `unsigned`, `signed-by-another`, and, where nothing may be looked up, `lock-unsigned`.
        """


@dataclass(frozen=True, slots=True)
class Means:
    """What resolving works with. `tools` builds a tools tree and gives its layer."""

    store: Store
    results: Callable[[], Results]
    executor: Callable[[], Executor]
    fetch: Fetcher
    tools: Callable[[str], Blob]
    events: Events
    cancel: threading.Event
    platform: str
    epoch: int
    given: Mapping[str, str] = field(default_factory=dict)  # what --set changed for all nodes
    witness: Witness | None = None


@dataclass
class LockPhase:
    """Locks nodes one after the other. `entries`, by slot, are what the lock file said and, in the end, shall say.

    `update` names nodes to resolve anew; `frozen` makes a missing or stale entry an InputError
    (`lock-missing`, `lock-stale`) whose hint is `command`.
    """

    means: Means
    find: Callable[[str], Node]
    entries: dict[str, LockEntry]
    frozen: bool = False
    update: Collection[str] = ()
    command: str = "kbuild lock"
    resolved: list[str] = field(default_factory=list)
    slots: dict[str, str] = field(default_factory=dict)
    """Name → slot of the nodes that were locked."""
    _stamps: dict[str, str] = field(default_factory=dict)
    _asked: dict[str, Path] = field(default_factory=dict)

    def run(self, nodes: Iterable[Node]) -> None:
        """Set `locked` of these nodes, given in build order. Frozen, all that is amiss is raised at once."""
        problems: list[KbuildError] = []
        for node in nodes:
            try:
                self.lock(node)
                self._have_witnessed(node)
            except InputError as error:
                if not self.frozen:
                    raise
                problems.append(error)
        raise_problems(problems)

    def _have_witnessed(self, node: Node) -> None:
        """See to it that what the node takes from elsewhere is signed as it must be, and that the lock says so."""
        entry = self.entries.get(self.slots[node.name])
        if entry is None or self.means.witness is None:
            return
        found = self.means.witness(node, entry.signatures, self.frozen)
        if found != entry.signatures:
            self.entries[self.slots[node.name]] = replace(entry, signatures=found)
            self.resolved.append(node.name)

    def lock(self, node: Node) -> None:
        """Set `locked` of one node."""
        slot = self._slot(node)
        entry = self.entries.get(slot)
        wanted = node.name in self.update
        if entry and not wanted and entry.checksum == self.checksum(node):
            materials = tuple(Material(pin.uri, pin.digest, pin.size) for pin in entry.materials)
            node.locked = Locked(entry.data, materials)
            return
        if entry and self.frozen:
            raise self._amiss(node, "lock-stale", "was resolved from something else than it says now")
        node.locked = self._resolve(node)
        if node.locked.data or node.locked.materials:
            pins = tuple(Pin(m.uri, m.digest, m.size) for m in node.locked.materials)
            self.entries[slot] = LockEntry(self.checksum(node), node.locked.data, pins)
            self.resolved.append(node.name)
        elif entry:
            del self.entries[slot]
            self.resolved.append(node.name)

    @property
    def touched(self) -> list[str]:
        """The slots of what was resolved."""
        return [self.slots[name] for name in self.resolved]

    def _slot(self, node: Node) -> str:
        given = self.means.given if node.name.startswith(TOOLS) else node.declaration.given
        self.slots[node.name] = slot(node.name, given)
        return self.slots[node.name]

    def checksum(self, node: Node) -> str:
        """What a node's lock depends on."""
        declared, kind = node.declaration, node.kind
        document = {
            "format": FORMAT,
            "kind": kind.name,
            "version": kind.version,
            "spec": declared.spec,
            "platform": platform_of(declared, self.means.platform),
            "epoch": self.means.epoch,
            "upstream": {
                role: [self._stamp(self.find(name)) for name in names]
                for role, names in declared.refs.items()
            },
        }
        return of_bytes(dumps(document)).digest

    def _stamp(self, node: Node) -> str:
        """What a node's lock depends on, and what it is."""
        if node.name not in self._stamps:
            locked = [node.locked.data, [one.digest for one in node.locked.materials]]
            self._stamps[node.name] = of_bytes(dumps([self.checksum(node), locked])).digest
        return self._stamps[node.name]

    def _resolve(self, node: Node) -> Locked:
        if self.frozen:
            frozen = _FrozenLocker(self, node)
            locked = node.kind.lock(node.spec, frozen)
            if locked.data or locked.materials:
                raise self._amiss(node, "lock-missing", "is not in the lock file")
            return locked
        locker = NodeLocker(self, node)
        try:
            return node.kind.lock(node.spec, locker)
        except KbuildError as error:
            error.origin = error.origin or node.declaration.origin
            raise
        finally:
            locker.close()

    def _amiss(self, node: Node, reason: str, what: str) -> InputError:
        return InputError(
            f"{node.name} {what}", reason=reason, hint=f"run: {self.command}", origin=node.declaration.origin
        )


@dataclass(frozen=True, slots=True)
class Relocked:
    """What came of locking: the nodes that were resolved, and the lock before and after."""

    resolved: tuple[str, ...]
    before: LockFile
    after: LockFile


class NodeLocker:
    """`graph.node.Locker` for one node."""

    def __init__(self, phase: LockPhase, node: Node) -> None:
        self.name, self.epoch = node.name, phase.means.epoch
        self.platform = platform_of(node.declaration, phase.means.platform)
        self._phase, self._node, self._means = phase, node, phase.means
        self._scratch: Path | None = None

    def upstream(self, role: str) -> Sequence[tuple[str, Any, Locked]]:
        """(kind, spec, locked) of the nodes a role names, already locked."""
        found = (self._phase.find(name) for name in self._node.declaration.refs.get(role, ()))
        return [(one.declaration.kind, one.spec, one.locked) for one in found]

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """Get a file. What may change outside is asked for once: all nodes are resolved from the same state."""
        if digest is not None:
            return self._means.fetch(uri, digest=digest, size=size)
        if uri not in self._phase._asked:
            self._phase._asked[uri] = self._means.fetch(uri, size=size)
        return self._phase._asked[uri]

    def path(self, blob: Blob) -> Path:
        """Where a stored blob can be read."""
        return self._means.store.cas.path(blob.digest)

    @property
    def scratch(self) -> Path:
        """The node's folder."""
        if self._scratch is None:
            self._scratch = self._means.store.cas.tmp()
        return self._scratch

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""
        return self._means.store.cas.put_bytes(data)

    def put_file(self, path: Path) -> Blob:
        """Store this scratch file by moving it."""
        return self._means.store.cas.put_file(path)

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        """Do work once for this preimage, ever."""
        return derive(self._means.store, self._means.results(), domain, version, preimage, make)

    def tools(self, purpose: str) -> Blob:
        """The layer of a tools tree."""
        return self._means.tools(purpose)

    def execute(self, action: Action) -> ActionResult:
        """Run an action in the sandbox."""
        action = replace(action, env={"SOURCE_DATE_EPOCH": str(self.epoch), **action.env})
        return self._means.executor().execute(
            action, name=self._node.name, scratch=self.scratch, cancel=self._means.cancel
        )

    def note(self, text: str) -> None:
        """A line for the person who waits."""
        self._means.events.emit("note", self._node.name, message=text)

    def close(self) -> None:
        """Remove what was in between."""
        if self._scratch is not None:
            remove_tree(self._scratch)


class _FrozenLocker(NodeLocker):
    """Lets a kind say that it locks nothing; whatever would resolve something is an error."""

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """Never."""
        self._refuse()

    def tools(self, purpose: str) -> Blob:
        """Never."""
        self._refuse()

    def execute(self, action: Action) -> ActionResult:
        """Never."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise self._phase._amiss(self._node, "lock-missing", "is not in the lock file")


_: type[Locker] = NodeLocker


def entries_of(file: LockFile) -> dict[str, LockEntry]:
    """A lock file's entries by the slots of nodes, tools trees among them."""
    return {**file.nodes, **{TOOLS + purpose: entry for purpose, entry in file.toolchain.items()}}


def file_of(entries: Mapping[str, LockEntry]) -> LockFile:
    """The lock file of these entries."""
    return LockFile(
        {name: entry for name, entry in entries.items() if not name.startswith(TOOLS)},
        {name[len(TOOLS) :]: entry for name, entry in entries.items() if name.startswith(TOOLS)},
    )


def outdated(slots: Iterable[str], recipe: Recipe, there: Collection[str], whole: bool) -> set[str]:
    """The slots that no run of this recipe reads any more.

    `there` are the nodes of this run; `whole` tells that these are all that there are when nothing is set.
    """
    found = set()
    for each in slots:
        name, variables = of_slot(each)
        if name.startswith(TOOLS):
            continue
        gone = name not in there if whole and not variables else bare(name) not in recipe.names
        if gone or not variables <= recipe.settable:
            found.add(each)
    return found
