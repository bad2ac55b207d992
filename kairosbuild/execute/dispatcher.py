"""The engine's heart: one thread decides, worker threads build.

The dispatcher alone holds state. It walks the nodes that may have changed, in build order: a node
whose inputs came out as before stays as it was; otherwise its key is taken from the *outputs* of its
inputs (early cutoff), looked up, and, when no cache has it, handed to a worker. A worker holds the
key's lock, looks again, fetches the materials, builds, and keeps the result. Shared caches are asked
before, many nodes at a time, since that costs waiting and no processor. A result of theirs counts without its
blobs; they are brought when a build reads them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, KbuildError, NodeError, raise_problems
from kairosbuild.execute import keying
from kairosbuild.execute.nodes import Node, Report, Result, Work, platform_of
from kairosbuild.execute.schedule import Needs, Schedule
from kairosbuild.execute.snapshot import Hasher
from kairosbuild.execute.task import EVICTED, Bench, BuildTask, log_of, source_changed
from kairosbuild.execute.workers import Workers
from kairosbuild.graph.keys import key as key_of
from kairosbuild.graph.node import Material
from kairosbuild.store.record import Record

Fetch = Callable[[Sequence[Material]], object]
"""Brings materials into the store, in parallel and verified."""
_UNKNOWN = 1.0  # seconds a node is thought to take before it ever ran
_LISTEN = 0.1  # seconds between looks whether the run shall stop
_LOOKUPS = 16  # questions to shared caches at once
_PATIENCE = 15.0  # seconds the children get to end after an interruption


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: nodes at once, whether to go on after a failure, bytes of memory to share out."""

    jobs: int = 0
    keep_going: bool = False
    memory: int = 0

    @property
    def cpus(self) -> int:
        """Jobs, by default one a processor that this process may use."""
        return self.jobs or len(os.sched_getaffinity(0))

    @property
    def bytes(self) -> int:
        """Memory to share out, by default this machine's."""
        return self.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Dispatcher:
    """Brings nodes up to date."""

    def __init__(self, work: Work, bench: Bench, *, fetch: Fetch, hasher: Hasher, options: Options) -> None:
        self._work, self._bench, self._fetch, self._hasher = work, bench, fetch, hasher
        self._options = options
        self._schedule = Schedule(options.cpus, options.bytes)
        self._workers = Workers(options.cpus)
        self._lookups = Workers(_LOOKUPS, done=self._workers.done)
        self._looking: set[int] = set()
        self._report = Report()
        self._ready: deque[int] = deque()
        self._waiting: dict[int, int] = {}
        self._stale: set[int] = set()
        self._keys: dict[int, tuple[str, dict[str, Any]]] = {}
        self._remaining: dict[int, float] = {}
        self._began: dict[int, float] = {}

    def run(self, dirty: Iterable[int], targets: Iterable[int]) -> Report:
        """Bring the targets up to date; `dirty` nodes may have changed, all others only through their inputs.

        Raises InputError for sources that cannot be read. What fails later is in the report. On
        KeyboardInterrupt, or when `cancel` is set, every child is ended and the report says `interrupted`.
        """
        closure = set(self._work.graph.closure(targets))
        self._stale = set(dirty) & closure
        active = [i for i in self._work.graph.dependants(self._stale) if i in closure]
        self._report.active = len(active)
        self._snapshot(self._stale)
        self._bench.events.emit("run-started", total=len(active), unchanged=len(closure) - len(active))
        with self._bench.store.lease():
            self._start(active)
            try:
                self._loop()
            except KeyboardInterrupt:
                self._interrupt()
        self._workers.close()
        self._lookups.close()
        self._forget(active)
        self._bench.events.emit(
            "run-finished",
            built=self._report.count("built"),
            hits=self._report.count("hit"),
            failed=len(self._report.failed),
            skipped=len(self._report.skipped),
        )
        return self._report

    # -- deciding: one thread ------------------------------------------------------------------

    def _start(self, active: list[int]) -> None:
        among, graph = set(active), self._work.graph
        self._waiting = {i: sum(j in among for j in graph.deps[i]) for i in active}
        nodes = self._work.nodes
        seconds = {i: nodes[i].seconds for i in active}
        self._remaining = graph.remaining({i: _UNKNOWN if s is None else s for i, s in seconds.items()})
        self._ready.extend(i for i in active if not self._waiting[i])

    def _loop(self) -> None:
        while True:
            while self._ready:
                self._consider(self._ready.popleft())
            if self._bench.cancel.is_set():
                self._interrupt()
            while (i := self._schedule.start()) is not None:
                self._launch(i)
            if not self._schedule.running and not self._looking:
                return
            with suppress(Empty):
                self._ended(*self._workers.wait(_LISTEN))

    def _consider(self, i: int) -> None:
        """A node whose inputs are all settled: unchanged, in a cache, or to be built."""
        node = self._work.nodes[i]
        if i not in self._stale and node.result is not None:
            self._settle(i, replace(node.result, where="memory"), told=False)
            return
        try:
            if node.snapshots is None:
                node.snapshots = keying.snapshots(self._work.root, node, self._hasher)
            document = keying.document(self._work, node)
            key = key_of(document)
        except (KbuildError, TypeError, ValueError) as error:
            self._fail(i, error)
            return
        known = node.result
        if known and known.key == key and not self._bench.results.absent(known.outputs.values()):
            self._settle(i, replace(known, where="memory"), told=False)
        elif record := self._bench.results.local(key):
            self._settle(i, Result(key, record.outputs, record.seconds, "local"))
        else:
            self._keys[i] = key, document
            self._look(i, key) if self._bench.results.remotes else self._wait(i)

    def _wait(self, i: int) -> None:
        """No cache has it: it is to be built."""
        self._schedule.add(i, self._remaining[i], Needs.of(self._work.nodes[i].declaration.hints))

    def _look(self, i: int, key: str) -> None:
        """Ask the shared caches, beside everything else."""
        self._looking.add(i)
        self._lookups.submit(i, lambda: _Looked(self._bench.results.remote(key)))

    def _looked(self, i: int, found: tuple[str, Record] | None) -> None:
        self._looking.discard(i)
        if found:
            where, record = found
            self._settle(i, Result(record.key, record.outputs, record.seconds, where))
        elif not self._bench.cancel.is_set() and (self._options.keep_going or not self._report.failed):
            self._wait(i)

    def _launch(self, i: int) -> None:
        key, document = self._keys[i]
        self._began[i] = time.monotonic()
        job = _Job(self, i, self._work.nodes[i], key, document)
        self._workers.submit(i, job.run)

    def _ended(self, i: int, result: Result | _Looked | None, error: BaseException | None) -> None:
        if isinstance(result, _Looked):
            self._looked(i, result.found)
            return
        if i in self._looking:
            self._looking.discard(i)
        else:
            self._schedule.end(i)
        if result is not None:
            self._settle(i, result)
        else:
            assert error is not None
            self._fail(i, error)

    def _settle(self, i: int, result: Result, *, told: bool = True) -> None:
        node = self._work.nodes[i]
        changed = node.result is None or node.result.outputs != result.outputs
        node.result, node.seconds = result, result.seconds
        self._report.results[i] = result
        if told:
            self._tell(node.name, result)
        for j in self._work.graph.rdeps[i]:
            if j in self._waiting:
                if changed:
                    self._stale.add(j)
                self._waiting[j] -= 1
                if not self._waiting[j]:
                    self._ready.append(j)
            elif changed:
                self._work.nodes[j].result = None  # not asked for now; it was made from another input

    def _forget(self, active: Iterable[int]) -> None:
        """What did not get as far as a result has none: the one of before was made from something else."""
        for i in active:
            if i not in self._report.results:
                self._work.nodes[i].result = None

    def _tell(self, name: str, result: Result) -> None:
        if result.where == "built":
            self._bench.events.emit("node-finished", name, seconds=result.seconds, key=result.key)
        else:
            self._bench.events.emit("node-hit", name, where=result.where, key=result.key)

    def _fail(self, i: int, error: BaseException) -> None:
        node = self._work.nodes[i]
        problem = _as_problem(node, error)
        if problem.reason == EVICTED and self._bench.results.lost:
            self._report.evicted = True
            self._report.failed[i] = problem
            self._skip_dependants(i, told=False)
            return
        if not self._bench.cancel.is_set():
            self._report.failed[i] = problem
            self._bench.events.emit(
                "node-failed", node.name, message=problem.message, reason=problem.reason, hint=problem.hint
            )
        self._skip_dependants(i)
        if not self._options.keep_going:
            self._schedule.drop()
            self._ready.clear()

    def _skip_dependants(self, i: int, *, told: bool = True) -> None:
        for j in self._work.graph.dependants([i]):
            if j != i and j in self._waiting and j not in self._report.skipped:
                self._report.skipped[j] = i
                if told:
                    self._bench.events.emit(
                        "node-skipped", self._work.nodes[j].name, needs=self._work.nodes[i].name
                    )

    def _interrupt(self) -> None:
        """End every child and wait for the workers, so that nothing is left half-done."""
        self._bench.cancel.set()
        self._report.interrupted = True
        self._schedule.drop()
        self._ready.clear()
        deadline = time.monotonic() + _PATIENCE
        while self._schedule.running:
            try:
                self._ended(*self._workers.wait(max(0.0, deadline - time.monotonic())))
            except Empty:
                return
            self._ready.clear()

    # -- what goes into a key ------------------------------------------------------------------

    def _snapshot(self, nodes: Iterable[int]) -> None:
        problems: list[KbuildError] = []
        for i in sorted(nodes):
            node = self._work.nodes[i]
            if node.snapshots is None:
                try:
                    node.snapshots = keying.snapshots(self._work.root, node, self._hasher)
                except KbuildError as error:
                    problems.append(error)
        raise_problems(problems)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What the shared caches said of a node."""

    found: tuple[str, Record] | None


class _Job:
    """One node in a worker thread."""

    def __init__(self, owner: Dispatcher, index: int, node: Node, key: str, document: dict[str, Any]) -> None:
        self._owner, self._node, self._key, self._document = owner, node, key, document
        self._bench = owner._bench
        self._inputs = keying.inputs(owner._work, node)
        self._tools = keying.tools(owner._work, node)

    def run(self) -> Result:
        results, key = self._bench.results, self._key
        with self._bench.store.lock(key):
            if record := results.local(key):
                return Result(key, record.outputs, record.seconds, "local")
            return self._build()

    def _build(self) -> Result:
        name = self._node.name
        self._bench.events.emit("node-started", name, key=self._key)
        began = time.monotonic()
        self._gather()
        task = BuildTask(
            self._bench,
            name,
            self._node.spec,
            locked=self._node.locked,
            inputs=self._inputs,
            snapshots=self._node.snapshots or {},
            tools=self._tools,
            platform=platform_of(self._node.declaration, self._bench.platform),
            timeout=self._node.declaration.hints.get("timeout"),
        )
        try:
            outputs = dict(self._node.kind.build(task))
            self._check(outputs)
        except KbuildError as error:
            if not log_of(error) and task.log:
                error.log = b"".join(task.log)  # type: ignore[attr-defined]
            raise
        finally:
            task.close()
        seconds = time.monotonic() - began
        log = self._bench.store.cas.put_bytes(b"".join(task.log)) if task.log else None
        record = Record(self._key, self._document, outputs, seconds, log, name)
        self._bench.results.keep(record)
        return Result(self._key, outputs, seconds, "built")

    def _gather(self) -> None:
        """Everything the build reads is here before it starts: inputs, tools, materials."""
        missing = self._bench.missing
        blobs = [blob for some in self._inputs.values() for one in some for blob in one.outputs.values()]
        self._bench.bring([*blobs, *self._tools.values()], self._node.name)
        materials = {Blob(one.digest, one.size): one for one in self._node.locked.materials}
        if lacking := missing(materials):
            self._owner._fetch([materials[blob] for blob in materials if blob in lacking])
        if gone := missing(lacking):
            raise HostError(
                f"{materials[min(gone)].uri} is not the file that was locked ({min(gone).digest})",
                reason="wrong-digest",
                hint=f"resolve anew with: kbuild lock RECIPE --update {self._node.name}",
            )

    def _check(self, outputs: Mapping[str, Blob]) -> None:
        """The result may be kept: the outputs exist, and the sources are still what was hashed."""
        name = self._node.name
        if gone := self._bench.results.absent(self._bench.missing(outputs.values())):
            message = f"{name}: its output {min(gone).digest} is not stored"
            raise NodeError(message, reason="output-missing")
        shots = self._node.snapshots or {}
        if all(shot.unchanged() for shot in shots.values()):
            return
        again = keying.snapshots(self._owner._work.root, self._node, self._owner._hasher)
        for role, shot in shots.items():
            if again[role].files != shot.files:
                raise source_changed(name, shot.base)
        self._node.snapshots = again


def _as_problem(node: Node, error: BaseException) -> KbuildError:
    """Any failure as one that names the node's place; a bug in a kind is told with its type."""
    origin = node.declaration.origin
    if isinstance(error, KbuildError):
        error.origin = error.origin or origin
        return error
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return HostError(f"{node.name}: {error.strerror or error}{place}", reason="os-error", origin=origin)
    problem = NodeError(
        f"{node.name}: {type(error).__name__}: {error}",
        reason="kind-error",
        origin=origin,
        hint=f"a bug in the kind {node.declaration.kind!r}; please report it",
    )
    problem.__cause__ = error
    return problem
