"""A task over a real store and executor, without an engine."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kairosbuild.core.digest import Blob
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.execute.snapshot import take
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.graph.node import UNLOCKED, Input, Locked, Outputs, SourceFile
from kairosbuild.store.store import Store


class SmallTask:
    """What `graph.node.Task` asks for; sources are real paths."""

    def __init__(
        self,
        store: Store,
        spec: Any,
        *,
        inputs: Mapping[str, tuple[Input, ...]] | None = None,
        sources: Mapping[str, Path] | None = None,
        locked: Locked = UNLOCKED,
        epoch: int = 1_700_000_000,
    ) -> None:
        self.name, self.spec, self.locked = "node", spec, locked
        self.platform, self.epoch = "linux/amd64", epoch
        self.inputs = inputs or {}
        self.store, self.notes = store, list[str]()
        self.scratch = store.cas.tmp()
        self._taken = {
            role: take("/", str(path), store.cas.add_copy) for role, path in (sources or {}).items()
        }
        self.sources: Mapping[str, tuple[SourceFile, ...]] = {
            role: one.files for role, one in self._taken.items()
        }
        self._executor = LocalExecutor(store, epoch=epoch)

    def source_path(self, role: str, logical: str) -> Path:
        return self._taken[role].path(logical)

    def path(self, blob: Blob) -> Path:
        return self.store.cas.path(blob.digest)

    def put_bytes(self, data: bytes) -> Blob:
        return self.store.cas.put_bytes(data)

    def put_file(self, path: Path) -> Blob:
        return self.store.cas.put_file(path)

    def tools(self, purpose: str) -> Blob:
        raise AssertionError(f"no kind here uses tools, not {purpose}")

    def execute(self, action: Action) -> ActionResult:
        return self._executor.execute(action, name=self.name, scratch=self.scratch, cancel=threading.Event())

    def derive(self, domain: str, version: int, preimage: Any, make: Callable[[], Outputs]) -> Outputs:
        return make()

    def note(self, text: str) -> None:
        self.notes.append(text)
