"""What a session works with: the store, caches, downloads and executor, each made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kairosbuild.execute.dispatcher import Dispatcher, Options
from kairosbuild.execute.executor import Executor
from kairosbuild.execute.results import Results
from kairosbuild.execute.task import Bench

if TYPE_CHECKING:
    from kairosbuild.core.events import Events
    from kairosbuild.execute.engine import Request, Wiring
    from kairosbuild.execute.lock import Fetcher
    from kairosbuild.execute.nodes import Work
    from kairosbuild.graph.node import Material
    from kairosbuild.store.store import Store


class Equipment:
    """See the module. `cancel` is set when the session must stop."""

    def __init__(self, request: Request, wiring: Wiring, events: Events) -> None:
        self._request, self._wiring, self.events = request, wiring, events
        self.cancel = wiring.cancel or threading.Event()

    @cached_property
    def store(self) -> Store:
        """The store."""
        return self._wiring.store()

    @cached_property
    def results(self) -> Results:
        """Where results are looked up and kept."""
        return self._wiring.results(self.store) if self._wiring.results else Results(self.store)

    @cached_property
    def executor(self) -> Executor:
        """What runs actions."""
        return self._wiring.executor(self.store)

    @cached_property
    def files(self) -> Fetcher:
        """The way to one file, for locking."""
        return self._wiring.files(self.store)

    @cached_property
    def _materials(self) -> Any:
        return self._wiring.materials(self.store)

    def dispatcher(self, work: Work) -> Dispatcher:
        """What brings this work up to date, once."""
        bench = Bench(
            self.store,
            self.results,
            lambda: self.executor,
            self.events,
            self.cancel,
            work.platform,
            work.epoch,
            self.store.cas.root / "tmp",
        )
        options = Options(self._request.jobs, self._request.keep_going)
        return Dispatcher(work, bench, fetch=self._fetch, hasher=self.store.sources.digest, options=options)

    def _fetch(self, materials: Sequence[Material]) -> object:
        return self._materials(materials)
