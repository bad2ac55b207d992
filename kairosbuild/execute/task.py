"""What a kind holds while it builds one node: `graph.node.Task`, over the store and an executor."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, KbuildError, NodeError
from kairosbuild.core.events import Events
from kairosbuild.execute.derive import derive
from kairosbuild.execute.executor import Executor
from kairosbuild.execute.results import Results
from kairosbuild.execute.snapshot import Snapshot
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.graph.node import Input, Locked, Outputs, SourceFile
from kairosbuild.store.store import Store

EVICTED = "input-evicted"
"""The reason of a failure for want of an input that was there when it was counted on."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every task works with: store, results, executor, and how it hears that it must stop.

    `scratch` is one folder for all that executors put between: each makes a folder of its own in it.
    `here` are digests that were seen in the store during this run, under its lease.
    """

    store: Store
    results: Results
    executor: Callable[[], Executor]
    events: Events
    cancel: threading.Event
    platform: str
    epoch: int
    scratch: Path
    here: set[str] = field(default_factory=set)

    def missing(self, blobs: Iterable[Blob]) -> set[Blob]:
        """Which of these are not stored. What was found once stays for the run: its lease says so."""
        asked = [blob for blob in blobs if blob.digest not in self.here]
        if not asked:
            return set()
        lacking = self.store.cas.missing(asked)
        self.here.update(blob.digest for blob in asked if blob not in lacking)
        return lacking

    def bring(self, blobs: Iterable[Blob], name: str) -> None:
        """Have what a build reads here, out of a shared cache if need be. Raises HostError `input-evicted`."""
        lacking = self.missing(blobs)
        if lacking and (gone := self.results.bring(lacking)):
            raise HostError(
                f"an input of {name} was removed from the store: {min(gone).digest}",
                reason=EVICTED,
                hint="run the build again",
            )


class BuildTask:
    """One node's build. Used by one thread, closed when the build is over."""

    def __init__(
        self,
        bench: Bench,
        name: str,
        spec: Any,
        *,
        locked: Locked,
        inputs: Mapping[str, tuple[Input, ...]],
        snapshots: Mapping[str, Snapshot],
        tools: Mapping[str, Blob],
        platform: str,
        timeout: float | None = None,
    ) -> None:
        self.name, self.spec, self.locked, self.inputs = name, spec, locked, inputs
        self.platform, self.epoch = platform, bench.epoch
        self.sources: Mapping[str, tuple[SourceFile, ...]] = {role: s.files for role, s in snapshots.items()}
        self.log: list[bytes] = []
        self._bench = bench
        self._snapshots = snapshots
        self._tools = tools
        self._timeout = timeout
        self._scratch: Path | None = None
        self._found: dict[str, Path] | None = None

    @property
    def scratch(self) -> Path:
        """The node's folder. Making and removing one costs more than all else that a small node does."""
        if self._scratch is None:
            self._scratch = self._bench.store.cas.tmp()
        return self._scratch

    def source_path(self, role: str, logical: str) -> Path:
        """Where a source file's bytes can be read."""
        return self._snapshots[role].path(logical)

    def path(self, blob: Blob) -> Path:
        """Where a blob can be read; a source file's is brought into the store first."""
        self._bring([blob])
        return self._bench.store.cas.path(blob.digest)

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""
        return self._bench.store.cas.put_bytes(data)

    def put_file(self, path: Path) -> Blob:
        """Store this scratch file by moving it."""
        return self._bench.store.cas.put_file(path)

    def tools(self, purpose: str) -> Blob:
        """The layer of a tools tree that the kind named; another one would be missing from the key."""
        if purpose not in self._tools:
            raise NodeError(
                f"{self.name} uses the tools tree {purpose!r} without having named it",
                reason="tools-undeclared",
                hint="the kind's tools() names every tree that its build uses",
            )
        return self._tools[purpose]

    def execute(self, action: Action) -> ActionResult:
        """Run an action; its log becomes part of the node's."""
        self._bring([*action.inputs.values(), *action.root])
        action = replace(
            action,
            env={"SOURCE_DATE_EPOCH": str(self.epoch), **action.env},
            timeout=action.timeout or self._timeout,
        )
        self._bench.events.emit("action-started", self.name)
        began = time.monotonic()
        try:
            result = self._bench.executor().execute(
                action, name=self.name, scratch=self._bench.scratch, cancel=self._bench.cancel
            )
        except NodeError as error:
            self.log.append(log_of(error))
            raise
        finally:
            self._bench.events.emit("action-finished", self.name, seconds=time.monotonic() - began)
        if result.log:
            self.log.append(result.log)
        return result

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        """Do work once for this preimage, ever."""
        return derive(self._bench.store, self._bench.results, domain, version, preimage, make)

    def note(self, text: str) -> None:
        """A line for the node's log, and for whoever watches."""
        self.log.append(text.encode() + b"\n")
        self._bench.events.emit("note", self.name, message=text)

    def close(self) -> None:
        """Remove the scratch folder."""
        if self._scratch is not None:
            remove_tree(self._scratch)

    def _bring(self, blobs: Iterable[Blob]) -> None:
        """Have what a build reads in the store: source files, if they still are what was hashed, and inputs."""
        others = []
        for blob in self._bench.missing(blobs):
            path = self._source_of(blob)
            if path is None:
                others.append(blob)
            elif self._bench.store.cas.add_copy(path) != blob:
                raise source_changed(self.name, str(path))
        self._bench.bring(others, self.name)

    def _source_of(self, blob: Blob) -> Path | None:
        if self._found is None:
            self._found = {
                one.blob.digest: shot.path(one.logical)
                for shot in self._snapshots.values()
                for one in shot.files
                if one.blob
            }
        return self._found.get(blob.digest)


def source_changed(name: str, path: str) -> NodeError:
    """A source is no longer what the key says: the result would lie."""
    return NodeError(
        f"{name}: {path} changed while it was built", reason="source-changed", hint="run the build again"
    )


def log_of(error: KbuildError) -> bytes:
    """The log an executor attached to its error."""
    log = getattr(error, "log", b"")
    return log if isinstance(log, bytes) else b""


def remove_tree(path: Path) -> None:
    """Remove a folder whatever modes a build left inside."""

    def retry(function: Callable[..., Any], name: str, _: Any) -> None:
        Path(name).parent.chmod(0o700)
        function(name)

    try:
        path.rmdir()
    except OSError:
        shutil.rmtree(path, onerror=retry)
