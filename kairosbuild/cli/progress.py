"""How a run is shown: bars on a terminal, plain lines elsewhere, JSON lines on request.

Each is a listener of `core.events`. Reports go to stderr; stdout is for results.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from kairosbuild.cli.style import err
from kairosbuild.core.events import Event

_FAILED = ("node-failed", "node-skipped")
_DONE = ("node-finished", "node-hit", *_FAILED)


class Reporter(Protocol):
    """A listener that is closed when the run is over."""

    def __call__(self, event: Event) -> None:
        """Take one event, from any thread."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def reporter(choice: str, stream: TextIO = sys.stderr) -> Reporter:
    """The reporter for `--progress`; `auto` is bars on a terminal and plain lines elsewhere."""
    if choice == "auto":
        choice = "bars" if stream.isatty() else "plain"
    made: dict[str, Callable[[TextIO], Reporter]] = {
        "bars": Bars,
        "plain": Plain,
        "json": JsonLines,
        "none": Silent,
    }
    return made[choice](stream)


class Silent:
    """Shows nothing."""

    def __init__(self, stream: TextIO) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Plain:
    """A line for what starts slowly, finishes, or fails. Hits are counted, not listed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Print the event's line, when it has one."""
        if text := line(event):
            with self._lock:
                self._stream.write(text + "\n")
                self._stream.flush()

    def close(self) -> None:
        """Nothing is held."""


class JsonLines:
    """Every event as one JSON object a line: `{"type", "subject", "at", …}`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Write the event."""
        text = json.dumps(as_json(event), ensure_ascii=False, default=str)
        with self._lock:
            self._stream.write(text + "\n")

    def close(self) -> None:
        """Hand over what is buffered."""
        self._stream.flush()


class Bars:
    """One tqdm bar for the nodes, one for bytes in flight; lines of finished nodes scroll above.

    The bar of the nodes is there while they run, and its clock ticks also when nothing else happens.
    """

    _EVERY = 0.05  # seconds between redraws of the bytes bar
    _TICK = 1.0  # seconds between redraws of the clock

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._nodes: Any = None
        self._bytes: Any = None
        self._running: dict[str, float] = {}
        self._moving: dict[str, int] = {}
        self._closed = threading.Event()
        self._clock: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Move the bars."""
        with self._lock:
            if event.type == "run-started":
                self._open(int(event.data.get("total", 0)))
            elif event.type.startswith("transfer-"):
                self._transfer(event)
            elif self._nodes is not None:
                self._node(event)
            if event.type == "run-finished":
                self._end_nodes()
            if text := line(event, quiet=True):
                self._write(text)

    def close(self) -> None:
        """Remove the bars."""
        self._closed.set()
        with self._lock:
            self._end_nodes()
            if self._bytes is not None:
                self._bytes.close()
                self._bytes = None

    def _tick(self) -> None:
        while not self._closed.wait(self._TICK):
            with self._lock:
                if self._nodes is not None:
                    self._nodes.refresh()

    def _end_nodes(self) -> None:
        if self._nodes is not None:
            self._nodes.close()
            self._nodes = None

    def _open(self, total: int) -> None:
        if not total:
            return  # over before it begins: tqdm would take longer to load
        from tqdm import tqdm

        form = "{desc} {n_fmt}/{total_fmt} |{bar:24}| {elapsed}{postfix}"
        self._nodes = tqdm(total=total, desc="nodes", file=self._stream, bar_format=form, leave=False)
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()

    def _node(self, event: Event) -> None:
        if event.type == "node-started":
            self._running[event.subject] = event.at
        if event.type in _DONE:
            self._running.pop(event.subject, None)
            self._nodes.update(1)
        self._nodes.set_postfix_str(" ".join(list(self._running)[:4]))

    def _transfer(self, event: Event) -> None:
        from tqdm import tqdm

        if self._bytes is None:
            self._bytes = tqdm(
                total=0,
                desc="bytes",
                file=self._stream,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
                position=1,
                mininterval=self._EVERY,
            )
        if event.type == "transfer-started":
            self._bytes.total += int(event.data.get("size", 0))
            self._moving[event.subject] = 0
        elif event.type == "transfer-progress":
            done = int(event.data.get("bytes", 0))
            self._bytes.update(done - self._moving.get(event.subject, 0))
            self._moving[event.subject] = done

    def _write(self, text: str) -> None:
        if self._nodes is None:
            self._stream.write(text + "\n")
        else:
            self._nodes.write(text, file=self._stream)


def line(event: Event, *, quiet: bool = False) -> str:
    """The line a person reads for this event, or "" when it says nothing new. `quiet` leaves out starts."""
    subject, data = event.subject, event.data
    match event.type:
        case "node-started" if not quiet:
            return f"{err.yellow('run ')}  {subject}" + _reason(data)
        case "node-finished":
            return f"{err.green('done')}  {subject}  {err.dim(_seconds(data))}"
        case "node-failed":
            return f"{err.red('FAIL')}  {subject}  {data.get('message', '')}"
        case "node-skipped":
            return f"{err.dim('skip')}  {subject}  {err.dim('needs ' + str(data.get('needs', '?')))}"
        case "note":
            return f"{err.cyan('note')}  {(subject + ': ') if subject else ''}{data.get('message', '')}"
    return ""


def as_json(event: Event) -> dict[str, Any]:
    """An event as a JSON object."""
    return {"type": event.type, "subject": event.subject, "at": round(event.at, 6), **event.data}


def _reason(data: Any) -> str:
    return err.dim(f"  {data['reason']}") if data.get("reason") else ""


def _seconds(data: Any) -> str:
    return f"{float(data.get('seconds', 0)):.1f} s"


class EventFile:
    """`--events FILE`: JSON lines with wall-clock time, whatever the terminal shows."""

    def __init__(self, path: str) -> None:
        self._stream = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._lines = JsonLines(self._stream)
        self._offset = time.time() - time.monotonic()

    def __call__(self, event: Event) -> None:
        """Write the event."""
        self._lines(Event(event.type, event.subject, event.data, event.at + self._offset))

    def close(self) -> None:
        """Finish the file."""
        self._lines.close()
        self._stream.close()
