"""A locker over a real store and executor; what it fetches comes from where a test says."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from small_task import SmallTask

from kairosbuild.core.digest import Blob
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.graph.node import Locked, Material, Outputs
from kairosbuild.kinds.tools import Tools, ToolsSpec
from kairosbuild.sources.download import Downloader, Wanted
from kairosbuild.sources.mirrors import Mirrors
from kairosbuild.store.store import Store

Upstream = Sequence[tuple[str, Any, Locked]]


class SmallLocker:
    """What `graph.node.Locker` asks for. `images` answers for registries: uri → bytes."""

    def __init__(
        self,
        store: Store,
        mirrors: Mirrors,
        *,
        upstream: Mapping[str, Upstream] | None = None,
        images: Mapping[str, bytes] | None = None,
        helper: Path | None = None,
    ) -> None:
        self.name, self.platform, self.epoch = "node", "linux/amd64", 1_700_000_000
        self.store, self._upstream, self._images = store, upstream or {}, images or {}
        self.loader = Downloader(store.cas, mirrors, helper=helper, attempts=2)
        self._executor = LocalExecutor(store, epoch=self.epoch)
        self._tools: dict[str, Blob] = {}
        self._seen: dict[str, Blob] = {}

    def upstream(self, role: str) -> Upstream:
        return self._upstream.get(role, ())

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        if uri in self._images:
            blob = self.store.cas.put_bytes(self._images[uri])
            assert digest in (None, blob.digest)
        elif digest and size is not None and self.store.cas.has(Blob(digest, size)):
            blob = Blob(digest, size)
        else:
            if uri not in self._seen:
                self._seen[uri] = self.loader.get([Wanted(uri, digest or "", size)])[uri]
            blob = self._seen[uri]
        return self.store.cas.path(blob.digest)

    def get(self, materials: Sequence[Material]) -> None:
        for material in materials:
            if material.uri in self._images:
                self.fetch(material.uri)
        missing = [m for m in materials if not self.store.cas.has(Blob(m.digest, m.size))]
        self.loader.get([Wanted(m.uri, m.digest, m.size) for m in missing])

    def path(self, blob: Blob) -> Path:
        return self.store.cas.path(blob.digest)

    @property
    def scratch(self) -> Path:
        return self.store.cas.tmp()

    def put_bytes(self, data: bytes) -> Blob:
        return self.store.cas.put_bytes(data)

    def put_file(self, path: Path) -> Blob:
        return self.store.cas.put_file(path)

    def derive(self, domain: str, version: int, preimage: Any, make: Callable[[], Outputs]) -> Outputs:
        return make()

    def tools(self, purpose: str) -> Blob:
        if purpose not in self._tools:
            self._tools[purpose] = self.build(Tools(), ToolsSpec(purpose=purpose))["layer"]
        return self._tools[purpose]

    def build(self, kind: Any, spec: Any, **more: Any) -> Any:
        """Lock and build a node."""
        locked = kind.lock(spec, self)
        self.get(locked.materials)
        return kind.build(SmallTask(self.store, spec, locked=locked, **more))

    def execute(self, action: Action) -> ActionResult:
        return self._executor.execute(
            action, name="node", scratch=self.store.cas.tmp(), cancel=threading.Event()
        )

    def note(self, text: str) -> None:
        raise AssertionError(text)


Made = Callable[..., SmallLocker]
