"""What happens during a run, as frozen values that any number of listeners read.

Terminal, JSON lines, plain lines and the Chrome trace are listeners; nobody else prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

EventType = Literal[
    "run-started",
    "run-finished",
    "node-started",
    "node-finished",
    "node-hit",
    "node-failed",
    "node-skipped",
    "action-started",
    "action-finished",
    "transfer-started",
    "transfer-progress",
    "transfer-finished",
    "note",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `subject` is the node, blob or reference it happened to.

    `at` is monotonic seconds; `data` is JSON-able detail (seconds, reason, key, message). A transfer's
    `size` is said when it starts; `bytes`, so far, with its progress and when it finishes.
    """

    type: EventType
    subject: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)


Listener = Callable[[Event], None]


class Events:
    """A fan-out of events to listeners. `emit` may be called from any thread; listeners must bear that."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def emit(self, type: EventType, subject: str = "", **data: Any) -> None:
        """Tell every listener."""
        event = Event(type, subject, data)
        for listener in self._listeners:
            listener(event)
