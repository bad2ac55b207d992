"""When to try again: on a broken connection, 429 and 5xx; a few times, with jitter; never else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kairosbuild.core.errors import HostError

T = TypeVar("T")
_PROGRESS = 1 << 20  # bytes; a transfer that gets so far each time gets to its end


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often, in seconds and times. `first` bounds attempts at a host that never answered."""

    connect: float = 4.0
    read: float = 60.0
    attempts: int = 5
    first: int = 2
    pause: float = 0.25
    longest: float = 60.0
    connections: int = 8


class Fault(Exception):
    """A failure that may pass: the message, a reason for people, and how long the server asked us to wait.

    `silent` says that nothing at that address answered at all.
    """

    def __init__(
        self, message: str, *, reason: str, after: float | None = None, silent: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.after = after
        self.silent = silent


def retrying(
    work: Callable[[], T],
    limits: Limits,
    *,
    known: Callable[[], bool],
    moved: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Do `work` until it raises no `Fault`, at last HostError. `known`: whether the host ever answered.

    Attempts are counted anew after one that moved a good deal: `moved` tells how many bytes there are so far.
    """
    attempt, before = 0, 0
    while True:
        attempt += 1
        try:
            return work()
        except Fault as fault:
            if moved() - before >= _PROGRESS:
                attempt, before = 1, moved()
            allowed = limits.first if fault.silent and not known() else limits.attempts
            if attempt >= allowed or (fault.after or 0) > limits.longest:
                raise _final(fault, attempt) from fault
            sleep(_pause(attempt, fault, limits))


def seconds_asked(retry_after: str | None) -> float | None:
    """The value of a Retry-After header, a number or a date; None when it is absent or makes no sense."""
    if not retry_after:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _pause(attempt: int, fault: Fault, limits: Limits) -> float:
    import random

    backoff = min(limits.longest, limits.pause * 2.0 ** (attempt - 1))
    return (fault.after or 0.0) + backoff * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, hides nothing)


def _final(fault: Fault, attempts: int) -> HostError:
    times = f" (tried {attempts} times)" if attempts > 1 else ""
    hint = {
        "registry-unreachable": "is the registry up, and its name and port right?",
        "registry-throttled": "wait, or log in for a higher limit",
    }.get(fault.reason, "")
    return HostError(f"{fault}{times}", reason=fault.reason, hint=hint)
