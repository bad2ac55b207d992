"""An executor whose actions believe in another clock: for finding out whether a build looks at it.

Nothing but the machine's own clock can be set, and that one is everybody's; so a library is preloaded that
answers for it (libfaketime). Static programs and those of another libc do not notice, and a root in which it
does not load keeps its clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError
from kairosbuild.execute.executor import Executor
from kairosbuild.graph.action import Action, ActionResult

_NAME = ".clock.so"


def environment(library: str, days: int) -> Mapping[str, str]:
    """What makes a program that is started with it believe that so many days have passed. Times of files stay."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME": f"+{days}d",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
        "NO_FAKE_STAT": "1",
    }


class Elsewhen:
    """An `Executor` that adds the clock to what another one runs; the action's own environment wins."""

    def __init__(self, below: Executor, library: Blob, days: int) -> None:
        self._below, self._library = below, library
        self._environment = environment(f"/in/{_NAME}", days)
        self._loads: dict[tuple[Blob, ...], bool] = {}

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action (see `Executor.execute`)."""
        if self._loads_in(action.root, scratch, cancel):
            action = self._with_clock(action)
        return self._below.execute(action, name=name, scratch=scratch, cancel=cancel)

    def close(self) -> None:
        """End what is kept between actions."""
        self._below.close()

    def _with_clock(self, action: Action) -> Action:
        inputs = {**action.inputs, _NAME: self._library}
        return replace(action, inputs=inputs, env={**self._environment, **action.env})

    def _loads_in(self, root: tuple[Blob, ...], scratch: Path, cancel: Event) -> bool:
        """Whether a shell of this root starts with the library."""
        if root not in self._loads:
            probe = self._with_clock(Action(("/bin/sh", "-c", ":"), root))
            try:
                done = self._below.execute(probe, name="clock", scratch=scratch, cancel=cancel)
                self._loads[root] = not done.log
            except NodeError:
                self._loads[root] = False
        return self._loads[root]
