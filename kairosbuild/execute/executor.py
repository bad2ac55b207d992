"""What an executor is: something that runs one action and says what it left."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Protocol

from kairosbuild.core.errors import NodeError
from kairosbuild.core.process import Finished, last_lines
from kairosbuild.graph.action import Action, ActionResult


class Executor(Protocol):
    """Runs actions; may be called from any thread, as often at once as the caller likes."""

    def execute(self, action: Action, *, name: str, scratch: Path, cancel: Event) -> ActionResult:
        """Run one action for the node `name`. Its outputs are in the store when this returns.

        `scratch` is a folder on the store's filesystem for what is in between. Raises ActionError
        (`action-failed`, `action-timeout`, `action-cancelled`, `output-missing`, `output-type`) and
        HostError when this machine cannot run it.
        """

    def close(self) -> None:
        """End what is kept between actions."""


_END = 4096  # bytes of a log in which a command says why it gave up
_FULL = "is the disk that holds the store full? `kbuild cache gc` removes what was not used lately"


class ActionError(NodeError):
    """An action that did not do what it was for; `log` is what it had printed until then."""

    def __init__(self, message: str, *, reason: str, hint: str = "", log: bytes = b"") -> None:
        lines = last_lines(log)
        shown = "\n" + "\n".join(f"  | {line}" for line in lines.splitlines()) if lines else ""
        super().__init__(message + shown, reason=reason, hint=hint)
        self.log = log


def judge(name: str, finished: Finished, log: bytes) -> None:
    """Raise the ActionError that this end of a command is, if it is one."""
    if finished.ended == "cancelled":
        raise ActionError(f"{name}: stopped", reason="action-cancelled", log=log)
    if finished.ended == "timeout":
        raise ActionError(
            f"{name}: the command was stopped after {finished.seconds:.0f} s",
            reason="action-timeout",
            hint="raise the node's timeout if it needs longer",
            log=log,
        )
    if finished.code:
        code = finished.code
        how = f"exited with status {code}" if code > 0 else f"was killed by signal {-code}"
        hint = _FULL if b"No space left on device" in log[-_END:] else ""
        raise ActionError(f"{name}: the command {how}", reason="action-failed", hint=hint, log=log)
