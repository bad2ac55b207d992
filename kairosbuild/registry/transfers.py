"""Many blobs at once, a bounded number in flight, each one told of; the first failure stops the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.core.events import Events
from kairosbuild.registry.target import JOBS, Progress

T = TypeVar("T")
Move = Callable[[Blob, Progress], int]


class Stopped(Exception):
    """This transfer ended because another one failed or the run was interrupted."""


def move(blobs: Iterable[Blob], work: Move, events: Events, *, verb: str, jobs: int = JOBS) -> int:
    """Move each blob once and return the bytes it took. `verb` (push, pull) is for people."""
    stop = threading.Event()
    unique = sorted(set(blobs), key=lambda blob: -blob.size)  # the longest first, so that none is last
    return sum(in_parallel(lambda blob: _one(blob, work, events, verb, stop), unique, jobs=jobs, stop=stop))


def in_parallel(
    work: Callable[[Blob], T], blobs: Iterable[Blob], *, jobs: int = JOBS, stop: threading.Event | None = None
) -> list[T]:
    """`work` for each, in order. The first failure is raised once the others have heeded `stop`."""
    stop = stop or threading.Event()
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="transfer")
    futures = [pool.submit(work, blob) for blob in blobs]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        _raise_first(futures)
    except Exception:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        _raise_first(futures)
        raise
    except BaseException:  # the run is interrupted: nobody waits for a registry's answer
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _one(blob: Blob, work: Move, events: Events, verb: str, stop: threading.Event) -> int:
    began = time.monotonic()

    def progress(done: int) -> None:
        if stop.is_set():
            raise Stopped
        events.emit("transfer-progress", blob.digest, bytes=done)

    if stop.is_set():
        raise Stopped
    events.emit("transfer-started", blob.digest, size=blob.size, verb=verb)
    outcome: dict[str, str | int] = {}
    try:
        moved = work(blob, progress)
        outcome = {"bytes": moved}
        return moved
    except KbuildError as problem:
        outcome = {"bytes": 0, "reason": problem.reason}
        raise
    finally:
        seconds = round(time.monotonic() - began, 3)
        events.emit("transfer-finished", blob.digest, verb=verb, seconds=seconds, **outcome)


def _raise_first(futures: Iterable[Future[T]]) -> None:
    """Raise what failed on its own; what merely stopped because of it says nothing."""
    problems = [f.exception() for f in futures if f.done() and not f.cancelled() and f.exception()]
    for problem in sorted(filter(None, problems), key=lambda p: isinstance(p, Stopped)):
        raise problem
