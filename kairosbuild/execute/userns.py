"""A user namespace in which every owner exists, and the worker processes that do their work in it.

As root the ids are mapped to themselves; as an ordinary user to the subordinate ids of /etc/subuid
and /etc/subgid, by the set-id programs newuidmap and newgidmap (Debian's package uidmap). Without
those a worker is root and alone, and who owns what is remembered (see `fakeowners`). What it makes
is the same each time.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

from kairosbuild.core import process
from kairosbuild.core.errors import HostError, Origin
from kairosbuild.core.process import Finished
from kairosbuild.execute import fakeowners, jail

IDS = 65536  # how many owners there are, 0 and nobody included
_LOOK = 0.1  # seconds between looks at the cancel event
_GRACE = 5.0  # seconds a worker gets to clean up after itself
_PACKAGE = str(Path(__file__).resolve().parents[2])


@cache
def alone() -> bool:
    """Whether a namespace here has no owner but one: for an ordinary user without subordinate ids."""
    if os.geteuid() == 0:
        return False
    try:
        _mappers()
    except HostError:
        if fakeowners.supported():
            return True
        raise
    return False


def only_one(name: str, origin: Origin | None) -> HostError:
    """The error of a node that takes more owners than there are here."""
    what = f"{name} takes every owner, and an ordinary user without subordinate ids has only one"
    return HostError(what, reason="no-subuids", hint=_HINT, origin=origin)


def interpreter(module: str) -> tuple[str, ...]:
    """The words that run a module's `main` in this interpreter without site-packages or environment."""
    code = f"import sys; sys.path.insert(0, {_PACKAGE!r}); from {module} import main; main(sys.argv[1:])"
    return (sys.executable, "-I", "-S", "-E", "-c", code)


def remove(path: Path) -> None:
    """Remove a folder whatever the mapped owner of what is in it."""
    with open(os.devnull, "wb") as log:  # noqa: PTH123
        call({"do": "remove", "path": str(path)}, log=log.fileno())


def call(
    request: Mapping[str, Any], *, log: int, timeout: float | None = None, cancel: Event | None = None
) -> tuple[Finished, dict[str, Any]]:
    """Let a worker do one thing (see `worker`) as root among all owners; return how it ended and its answer.

    Raises HostError: `no-subuids`, `no-namespaces`, `worker-failed`.
    """
    started = time.monotonic()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = process.start(
            (*interpreter("kairosbuild.execute.worker"), str(theirs.fileno()), str(log)),
            log=log,
            env={},
            pass_fds=(theirs.fileno(), log),
        )
        theirs.close()
        try:
            _introduce(ours, child.pid)
            ours.sendall(json.dumps(request).encode() + b"\n")
            ended = _wait(ours, None if timeout is None else started + timeout, cancel)
            answer = _answer(ours) if ended == "exit" else {"code": -9}
        finally:
            ours.close()  # tells the worker to stop and clean up
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE)
            process.stop(child)
    return Finished(answer["code"], time.monotonic() - started, ended), answer


def _introduce(sock: socket.socket, pid: int) -> None:
    """Map the ids of a worker that has just entered its namespace."""
    said = sock.recv(4096)
    if said != b"entered\n":
        why = said.decode("utf-8", "replace").strip() or "no answer"
        raise HostError(
            f"no user namespace can be made here: {why}",
            reason="no-namespaces",
            hint="are they allowed? see sysctl user.max_user_namespaces",
        )
    if os.geteuid() == 0:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 0 {IDS}")
    elif alone():
        jail.write_single_map(os.geteuid(), os.getegid(), pid)
    else:
        for mapper, own, first in _mappers():
            _map(mapper, pid, own, first)
    sock.sendall(b"alone\n" if alone() else b"mapped\n")


def _map(mapper: str, pid: int, own: int, first: int) -> None:
    words = (mapper, str(pid), "0", str(own), "1", "1", str(first), str(IDS - 1))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{mapper}: {done.stderr.strip()}", reason="no-subuids", hint=_HINT)


_HINT = (
    "apt install uidmap, and give this user subordinate ids: "
    "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER; or run as root"
)


@cache
def _mappers() -> tuple[tuple[str, int, int], ...]:
    """(program, our own id, first subordinate id) for users and for groups."""
    found = []
    for program, file, own in (("newuidmap", "subuid", os.geteuid()), ("newgidmap", "subgid", os.getegid())):
        path = shutil.which(program)
        if path is None:
            raise HostError(
                f"installing packages as an ordinary user needs {program}, which this machine does not have",
                reason="no-subuids",
                hint=_HINT,
            )
        found.append((path, own, _first(Path("/etc", file))))
    return tuple(found)


def _first(file: Path) -> int:
    """The first of enough subordinate ids of this user, as subuid(5) gives them."""
    names = {str(os.geteuid())}
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.geteuid()).pw_name)
    with suppress(FileNotFoundError):
        for line in file.read_text().splitlines():
            fields = line.split(":")
            if len(fields) == 3 and fields[0] in names and int(fields[2]) >= IDS - 1:
                return int(fields[1])
    raise HostError(f"{file} gives this user no {IDS - 1} subordinate ids", reason="no-subuids", hint=_HINT)


def _wait(sock: socket.socket, deadline: float | None, cancel: Event | None) -> Any:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while not poller.poll(_LOOK * 1000):
        if cancel is not None and cancel.is_set():
            return "cancelled"
        if deadline is not None and time.monotonic() >= deadline:
            return "timeout"
    return "exit"


def _answer(sock: socket.socket) -> dict[str, Any]:
    with sock.makefile("rb") as stream:
        line = stream.readline()
    if not line.endswith(b"\n"):
        raise HostError("a worker ended by itself", reason="worker-failed", hint="is memory short?")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise HostError(f"a worker failed: {answer['error']}", reason="worker-failed", hint=answer["hint"])
    return answer
