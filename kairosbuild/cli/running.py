"""What every verb that builds shares: listeners, interruption, and the report at the end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.style import err
from kairosbuild.core.events import Events

if TYPE_CHECKING:
    import argparse

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome


@contextmanager
def running(arguments: argparse.Namespace) -> Iterator[Parts]:
    """The parts of a run, its listeners closed afterwards.

    Ctrl-C and SIGTERM set `cancel`, and the run ends in order; a second one leaves at once.
    """
    from kairosbuild.cli.progress import EventFile, reporter
    from kairosbuild.cli.wiring import Parts

    listeners: list[Any] = [reporter(getattr(arguments, "progress", "auto"))]
    if getattr(arguments, "events", None):
        listeners.append(EventFile(arguments.events))
    if getattr(arguments, "trace", None):
        from kairosbuild.cli.trace import Trace

        listeners.append(Trace(arguments.trace))
    parts = Parts(arguments, Events(*listeners))

    def stop(*_: object) -> None:
        if parts.cancel.is_set():
            raise KeyboardInterrupt
        parts.cancel.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield parts
        parts.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for listener in listeners:
            listener.close()


def failures(parts: Parts, outcome: Outcome) -> int:
    """Tell what failed (each error carries the end of its log) and keep the whole logs; the exit code."""
    from kairosbuild.cli.main import INTERRUPTED, report

    for name, problem in outcome.failed.items():
        from kairosbuild.cli import logs

        report(problem, json=False)
        logs.keep(parts.store_root(), parts.arguments.recipe, name, problem)
    for name, needed in outcome.skipped.items():
        print(f"{err.dim('skipped:')} {name} needs {needed}", file=sys.stderr)
    if outcome.interrupted:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if not outcome.failed:
        return 0
    return min(problem.exit_code for problem in outcome.failed.values())


def summary(outcome: Outcome) -> str:
    """One line: how much was done, found, and left alone."""
    parts = [f"{outcome.built} built", f"{outcome.hits} from cache", f"{outcome.unchanged} unchanged"]
    if outcome.failed:
        parts.append(err.red(f"{len(outcome.failed)} failed"))
    if outcome.skipped:
        parts.append(f"{len(outcome.skipped)} skipped")
    return ", ".join(parts)


def outcome_json(outcome: Outcome, **more: Any) -> None:
    """The result of a run for programs."""
    given.print_json(
        {
            "recipe": outcome.name, "total": outcome.total, "built": outcome.built, "hits": outcome.hits,
            "unchanged": outcome.unchanged, "interrupted": outcome.interrupted,
            "failed": {n: {"reason": p.reason, "message": p.message} for n, p in outcome.failed.items()},
            "skipped": dict(outcome.skipped),
            "nodes": {name: _node(outcome, name) for name in outcome.names() if outcome.has(name)},
            **more,
        }
    )  # fmt: skip


def _node(outcome: Outcome, name: str) -> dict[str, Any]:
    outputs = {output: blob.digest for output, blob in outcome.outputs(name).items()}
    return {"key": outcome.key(name), "outputs": outputs}
