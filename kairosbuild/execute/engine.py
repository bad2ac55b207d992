"""The engine as the command line calls it: one function a question, all lazy enough for a null build.

    request = Request(recipe="recipes/debian.yaml", store="cache/v1", vars={"release": "sid"}, nodes=("disk",))
    outcome = evaluate(request, wiring, events)     # build; outcome.outputs("disk"), outcome.failed, …
    planned = plan(request, wiring, events)         # hit, run or wait, for every node
    reasons = why(request, wiring, events, "disk")  # sentences
    edges   = edges_of(request, wiring, events)     # for `graph` and `query`
    lock(request, wiring, events, update=("system",))

`Wiring` holds the ways to make what the engine needs (the recipe, kinds, store, executor, downloads,
shared caches). They are called when they are needed, so the modules behind them should be imported inside
them. When nothing changed since the last evaluation none is called: `evaluate` reads one file of the
store, asks `stat` for every source and output, and returns. This module imports nothing that
such a run does not use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kairosbuild.core.errors import KbuildError
from kairosbuild.core.events import Events
from kairosbuild.execute import memo
from kairosbuild.execute.selection import chosen, output_of

if TYPE_CHECKING:
    import threading

    from kairosbuild.core.digest import Blob
    from kairosbuild.execute.dispatcher import Fetch
    from kairosbuild.execute.executor import Executor
    from kairosbuild.execute.lock import Fetcher, Relocked, Witness
    from kairosbuild.execute.plan import Planned
    from kairosbuild.execute.results import Results
    from kairosbuild.execute.session import Session
    from kairosbuild.graph.node import KindTable
    from kairosbuild.recipe.declaration import Declaration, Recipe
    from kairosbuild.recipe.publication import Publish
    from kairosbuild.store.store import Store


_REFRESH = 12 * 3600.0  # seconds after which even a null build tells the store that its records are in use


class Request(NamedTuple):
    """What is asked. `store` is the store's root (`Store(home).root`), made if need be.

    No `nodes` means all that the recipe declares. `settings` are files besides the recipe and its lock
    that decide what the graph is (BUILD.yaml and where it could be, a user's settings); a change in
    one, or one that appears, makes the recipe be read again. `copied` are nodes (`NODE`, `NODE.OUTPUT`) whose results
    somebody waits for: one that would not be built is an error before anything is.
    """

    recipe: str
    store: str
    vars: Mapping[str, str] = {}
    nodes: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    jobs: int = 0
    keep_going: bool = False
    locked: bool = False
    copied: tuple[str, ...] = ()


class Wiring(NamedTuple):
    """How to make what the engine needs; each is called at most once, when it is first needed.

    `recipe` reads the recipe. `tools` declares the node of a tools tree. `materials` brings pinned files
    into the store; `files` gets one file by uri for locking. `results` tells which caches are shared, and keeps
    in mind what they turned out to lack. `witness` judges what was signed by whom. `cancel` is set when the run must stop.
    """

    recipe: Callable[[], Recipe]
    kinds: Callable[[], KindTable]
    tools: Callable[[str], Declaration]
    store: Callable[[], Store]
    executor: Callable[[Store], Executor]
    materials: Callable[[Store], Fetch]
    files: Callable[[Store], Fetcher]
    results: Callable[[Store], Results] | None = None
    witness: Callable[[], Witness | None] = lambda: None
    cancel: threading.Event | None = None


class Found(NamedTuple):
    """A node's result as others see it."""

    kind: str
    key: str
    outputs: Mapping[str, Blob]


class Outcome:
    """What came of an evaluation, or what was known already. Nodes are read when they are asked for.

    Of `total` nodes `unchanged` needed no look at any cache, `hits` were found in one, `built` were built.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        results: Mapping[str, Found],
        *,
        total: int,
        unchanged: int,
        built: int = 0,
        hits: int = 0,
        failed: Mapping[str, KbuildError] | None = None,
        skipped: Mapping[str, str] | None = None,
        interrupted: bool = False,
    ) -> None:
        self._head, self._results = head, results
        self.total, self.unchanged, self.built, self.hits = total, unchanged, built, hits
        self.failed: Mapping[str, KbuildError] = failed or {}
        self.skipped: Mapping[str, str] = skipped or {}
        self.interrupted = interrupted

    @property
    def ok(self) -> bool:
        """Whether everything asked for is there."""
        return not self.failed and not self.skipped and not self.interrupted

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self._head["name"])

    @property
    def root(self) -> str:
        """The workspace folder."""
        return str(self._head["root"])

    @property
    def epoch(self) -> int:
        """The recipe's epoch."""
        return int(self._head["epoch"])

    @property
    def platform(self) -> str:
        """The recipe's platform."""
        return str(self._head["platform"])

    @property
    def publish(self) -> Publish:
        """What the recipe publishes."""
        from kairosbuild.core.errors import Origin
        from kairosbuild.recipe.publication import Publish, PublishedCell

        targets, to, tags, requires, origin, cells, sbom, *proof = self._head["publish"]
        place = Origin(*origin) if origin else None
        made = {
            name: PublishedCell(cell[0], cell[1], cell[2], tuple(cell[3])) for name, cell in cells.items()
        }
        return Publish(tuple(targets), to, tuple(tags), tuple(requires), place, made, tuple(sbom), *proof)

    def names(self) -> tuple[str, ...]:
        """Every node there is, tools trees included, in build order."""
        return tuple(self._results)

    def has(self, node: str) -> bool:
        """Whether a node has a result."""
        try:
            self._results[node]
        except KeyError:
            return False
        return True

    def key(self, node: str) -> str:
        """The key of a node that has a result. KeyError otherwise."""
        return self._results[node].key

    def outputs(self, node: str) -> Mapping[str, Blob]:
        """The outputs of a node that has a result. KeyError otherwise."""
        return self._results[node].outputs

    def kind(self, node: str) -> str:
        """The kind of a node that has a result. KeyError otherwise."""
        return self._results[node].kind


def evaluate(request: Request, wiring: Wiring, events: Events) -> Outcome:
    """Bring the nodes asked for up to date.

    Raises InputError (a bad recipe, source or lock) and HostError before anything is built. What fails
    while it is built is in the outcome: `failed` by node, `skipped` with the failed node each needs.
    """
    memory = memo.read(memo.place(request.store, request.recipe, request.vars.items()))
    if memory is not None and _is_null(memory, request):
        if memory.age(time.time()) > _REFRESH:
            _session(request, wiring, events, memory).refresh()
        return _unchanged(memory, request, events)
    return _session(request, wiring, events, memory).evaluate()


def plan(request: Request, wiring: Wiring, events: Events) -> tuple[Planned, ...]:
    """The state of every node asked for, in build order: what would run, what is a hit, what waits."""
    return _session(request, wiring, events).plan()


def why(request: Request, wiring: Wiring, events: Events, node: str) -> tuple[str, ...]:
    """Why this node would run, in sentences; nothing when it would not."""
    return _session(request, wiring, events).why(node)


def edges_of(request: Request, wiring: Wiring, events: Events) -> Mapping[str, tuple[str, ...]]:
    """Every node, tools trees included, with the nodes it needs."""
    return _session(request, wiring, events).edges()


def lock(
    request: Request,
    wiring: Wiring,
    events: Events,
    update: Sequence[str] | None = None,
    *,
    write: bool = True,
) -> Relocked:
    """Resolve what is not resolved, `update` (all, if it is empty) anew, and write the lock file if so told."""
    return _session(request, wiring, events).lock(update, write=write)


def tools(request: Request, wiring: Wiring, events: Events, purpose: str) -> Blob:
    """The layer of a tools tree, locked and built if need be: for what runs tools outside of the graph."""
    return _session(request, wiring, events).tools(purpose)


def _session(request: Request, wiring: Wiring, events: Events, memory: memo.Memory | None = None) -> Session:
    from kairosbuild.execute.session import Session

    if memory is None:
        memory = memo.read(memo.place(request.store, request.recipe, request.vars.items()))
    return Session(request, wiring, events, memory)


# -- nothing changed ---------------------------------------------------------------------------


def input_paths(request: Request) -> list[str]:
    """The files that decide what the graph is, absolute: the recipe, its lock file, the settings."""
    recipe = os.path.abspath(request.recipe)  # noqa: PTH100
    return [recipe, os.path.splitext(recipe)[0] + ".lock", *request.settings]  # noqa: PTH122


def _is_null(memory: memo.Memory, request: Request) -> bool:
    """Whether everything asked for is known and nothing about it has changed."""
    if not memory.same_code or not memory.current(input_paths(request)):
        return False
    return not memory.dirty or (bool(request.nodes) and memory.dirty.isdisjoint(_asked(memory, request)))


def _asked(memory: memo.Memory, request: Request) -> set[int]:
    index = {name: i for i, name in enumerate(memory.names)}
    return memory.closure([index[name] for name in chosen(request.nodes, index)])


def _unchanged(memory: memo.Memory, request: Request, events: Events) -> Outcome:
    if request.copied:
        names = memory.names
        there = [names[i] for i in _asked(memory, request)] if request.nodes else names
        for word in request.copied:
            output_of(word, there)
    total = len(_asked(memory, request)) if request.nodes else int(memory.head["total"])
    events.emit("run-started", total=0, unchanged=total)
    events.emit("run-finished", built=0, hits=0, failed=0, skipped=0)
    return Outcome(memory.head, _Lines(memory), total=total, unchanged=total)


class _Lines(Mapping[str, Found]):
    """Results out of a memory's lines, one by one."""

    def __init__(self, memory: memo.Memory) -> None:
        self._memory = memory
        self._index: dict[str, int] | None = None
        self._found: dict[str, Found] = {}

    def __getitem__(self, name: str) -> Found:
        if name not in self._found:
            self._found[name] = self._read(name)
        return self._found[name]

    def _read(self, name: str) -> Found:
        from kairosbuild.core.digest import Blob

        if self._index is None:
            self._index = {name: i for i, name in enumerate(self._memory.names)}
        kind, result = self._memory.result(self._index[name])
        if result is None:
            raise KeyError(name)
        key, outputs = result
        return Found(kind, key, {output: Blob(*blob) for output, blob in outputs.items()})

    def __iter__(self) -> Any:
        return iter(self._memory.names)

    def __len__(self) -> int:
        return len(self._memory.names)
