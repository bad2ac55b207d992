"""`--trace FILE`: a run as a Chrome trace, one row a worker.

Format: "Trace Event Format", complete events (`ph: X`, microseconds); Perfetto and chrome://tracing read it.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.events import Event

_ENDS = {
    "node-finished": "node",
    "node-failed": "node",
    "action-finished": "action",
    "transfer-finished": "transfer",
}


class Trace:
    """Collects spans between a start and its end, and writes them when the run is over."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], tuple[float, int]] = {}
        self._rows: list[int] = []  # which row each running node has
        self._spans: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        """Open or close a span."""
        kind, _, phase = event.type.partition("-")
        with self._lock:
            if phase == "started" and kind in ("node", "action", "transfer"):
                self._open[kind, event.subject] = (event.at, threading.get_ident())
            elif event.type in _ENDS and (start := self._open.pop((kind, event.subject), None)):
                self._spans.append(self._span(kind, event, *start))

    def close(self) -> None:
        """Write the file."""
        document = {"displayTimeUnit": "ms", "traceEvents": self._spans}
        write_bytes(self._path, json.dumps(document).encode())

    def _span(self, kind: str, event: Event, began: float, thread: int) -> dict[str, Any]:
        if thread not in self._rows:
            self._rows.append(thread)
        return {
            "name": event.subject,
            "cat": kind,
            "ph": "X",
            "pid": 1,
            "tid": self._rows.index(thread) + 1,
            "ts": round(began * 1e6),
            "dur": round((event.at - began) * 1e6),
            "args": {key: value for key, value in event.data.items() if isinstance(value, str | int | float)},
        }
