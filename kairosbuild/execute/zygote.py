"""Zygotes as the executor sees them: started once for a root, used for one action at a time, and kept."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock

from kairosbuild.core import process
from kairosbuild.core.errors import HostError
from kairosbuild.core.process import Finished
from kairosbuild.execute import cell, staging
from kairosbuild.execute.userns import interpreter
from kairosbuild.graph.action import Action

_LOOK = 0.1  # seconds between looks at the cancel event
_START = 30.0  # seconds a zygote may take to enter its namespaces

Key = tuple[tuple[str, ...], tuple[str, ...]]


class Zygote:
    """One process with a folder of its own: `in`, `out`, `log` as in `staging`."""

    def __init__(self, folder: Path, trees: Sequence[Path], devices: Sequence[str]) -> None:
        self.folder = folder
        staging.prepare(folder)
        for name in ("root", "merged", "lower"):
            (folder / name).mkdir()
        for number, tree in enumerate(trees):
            (folder / "lower" / str(number)).symlink_to(tree)
        self._log = os.open(folder / "log", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._sock, self._child = self._start(devices)
        self._hello()

    def run(self, action: Action, env: dict[str, str], cancel: Event) -> Finished:
        """Run an action's command to its end. After anything but an exit the zygote is of no more use."""
        started = time.monotonic()
        self._sock.sendall(cell.request(action.cwd, action.command, env))
        deadline = None if action.timeout is None else started + action.timeout
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while not poller.poll(_LOOK * 1000):
            now = time.monotonic()
            if cancel.is_set() or (deadline is not None and now >= deadline):
                self.close()
                return Finished(-9, now - started, "cancelled" if cancel.is_set() else "timeout")
        answer = self._sock.recv(64)
        if not answer.endswith(b"\n"):
            self.close()
            raise HostError("a sandbox ended by itself", reason="sandbox-broken", hint="is memory short?")
        return Finished(int(answer), time.monotonic() - started)

    def log(self) -> bytes:
        """What the last command printed, its end when it is long."""
        if not self.alive:
            return process.tail(self.folder / "log")
        size = os.fstat(self._log).st_size
        if size <= process.TAIL:
            return os.pread(self._log, process.TAIL, 0) if size else b""
        return process.tail(self.folder / "log")

    @property
    def alive(self) -> bool:
        """Whether it can take another action."""
        return self._sock.fileno() >= 0

    def close(self) -> None:
        """End the process, and with it whatever it runs."""
        if self._sock.fileno() >= 0:
            self._sock.close()
            self._child.wait()
            os.close(self._log)

    def _start(self, devices: Sequence[str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs:
            words = cell.arguments(theirs.fileno(), self._log, str(self.folder), staging.HOSTNAME, devices)
            child = process.start(
                (*interpreter("kairosbuild.execute.cell"), *words),
                log=self._log,
                env={},
                pass_fds=(theirs.fileno(), self._log),
            )
        return ours, child

    def _hello(self) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        said = self._sock.recv(4096) if poller.poll(_START * 1000) else b""
        if said == cell.READY:
            os.ftruncate(self._log, 0)
            return
        why = (said.removeprefix(cell.BROKEN) or self.log() or b"no answer").decode("utf-8", "replace")
        self.close()
        raise HostError(
            f"no sandbox can be made here: {why}",
            reason="no-namespaces",
            hint="are user namespaces allowed? see sysctl user.max_user_namespaces",
        )


class Pool:
    """Zygotes by root; as many idle ones are kept as `keep` says, the longest unused goes first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._idle: OrderedDict[Zygote, Key] = OrderedDict()
        self._lock = Lock()

    def take(self, key: Key) -> Zygote | None:
        """An idle zygote for this root, if there is one."""
        with self._lock:
            found = next((one for one, its in reversed(self._idle.items()) if its == key), None)
            if found is not None:
                del self._idle[found]
            return found

    def give(self, key: Key, zygote: Zygote) -> None:
        """Keep a zygote for later."""
        with self._lock:
            self._idle[zygote] = key
            surplus = [self._idle.popitem(last=False)[0] for _ in range(len(self._idle) - self._keep)]
        for one in surplus:
            dispose(one)

    def close(self) -> None:
        """End all that are idle."""
        with self._lock:
            idle = list(self._idle)
            self._idle.clear()
        for one in idle:
            dispose(one)


def key_of(action: Action) -> Key:
    """What two actions must share to run in the same zygote."""
    return tuple(blob.digest for blob in action.root), action.devices


def dispose(zygote: Zygote) -> None:
    """End a zygote and remove its folder."""
    zygote.close()
    staging.remove(zygote.folder)
