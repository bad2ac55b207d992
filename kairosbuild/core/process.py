"""Running a child process: its own session, its output in a file, and no way to outlive its end.

A child that is told to stop gets SIGTERM with all of its process group, and SIGKILL a little later.
Whatever it left running in its group when it ended is killed too.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

from kairosbuild.core.errors import HostError

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_LOOK = 0.1  # seconds between looks at the cancel event
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
TAIL = 256 * 1024  # bytes of a log that are kept in memory


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended. `code` is its exit status, or minus the signal that killed it."""

    code: int
    seconds: float
    ended: Literal["exit", "timeout", "cancelled"] = "exit"

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with 0."""
        return self.code == 0 and self.ended == "exit"


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    cancel: Event | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    umask: int = -1,
) -> Finished:
    """Run a command to its end; stdout and stderr go to `log`, a path (appended to) or a descriptor.

    `timeout` counts seconds; `umask` -1 leaves this process's.
    Raises HostError (`program-missing`) when there is no such program.
    """
    started = time.monotonic()
    child = start(argv, log=log, env=env, cwd=cwd, pass_fds=pass_fds, stdin=stdin, umask=umask)
    try:
        ended = _wait(child, None if timeout is None else started + timeout, cancel)
    finally:
        code = stop(child)
    return Finished(code, time.monotonic() - started, ended)


def start(
    argv: Sequence[str | Path],
    *,
    log: Path | int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own. The caller owes it a `stop`."""
    opened = log if isinstance(log, int) else os.open(log, _APPEND, 0o644)
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=opened,
            stderr=opened,
            env=env,
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            umask=umask,
        )
    except FileNotFoundError as error:
        raise HostError(
            f"there is no program {str(error.filename)!r}",
            reason="program-missing",
            hint=f"it is needed to run: {' '.join(map(str, argv[:3]))} …",
        ) from error
    finally:
        if not isinstance(log, int):
            os.close(opened)


def stop(child: subprocess.Popen[bytes], *, grace: float = GRACE) -> int:
    """End a child and all of its group, whether it still runs or not; return its code, no zombie stays."""
    if child.returncode is not None:
        return child.returncode
    if not _ended(child, 0):
        _signal(child, signal.SIGTERM)
        _ended(child, grace)
    _signal(child, signal.SIGKILL)  # the leader is not reaped yet, so the group's number is still its own
    return child.wait()


def tail(path: Path, limit: int = TAIL) -> bytes:
    """The end of a file, from the start of a line; b"" when there is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - limit))
            data = stream.read(limit)
    except FileNotFoundError:
        return b""
    return data if size <= limit else data[data.find(b"\n") + 1 :]


def last_lines(log: bytes, lines: int = 20) -> str:
    """The last lines of a log, as text that can be printed."""
    return "\n".join(log.decode("utf-8", "replace").rstrip().splitlines()[-lines:])


def _wait(
    child: subprocess.Popen[bytes], deadline: float | None, cancel: Event | None
) -> Literal["exit", "timeout", "cancelled"]:
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        pause = left if cancel is None else _LOOK if left is None else min(left, _LOOK)
        if _ended(child, pause):
            return "exit"
        if cancel is not None and cancel.is_set():
            return "cancelled"
        if deadline is not None and time.monotonic() >= deadline:
            return "timeout"


def _ended(child: subprocess.Popen[bytes], timeout: float | None) -> bool:
    """Wait until a child has ended, without reaping it."""
    fd = os.pidfd_open(child.pid)
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(None if timeout is None else timeout * 1000))
    finally:
        os.close(fd)


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
