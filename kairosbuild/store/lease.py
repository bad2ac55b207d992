"""Leases: how a build tells garbage collection what it relies on, whoever dies first.

A build holds a *lease*: a file it keeps locked and appends to, one line for each thing it found in
the store and now counts on. The kernel drops the lock with the process, so a lease never outlives
its build. Looking something up and naming it in the lease happen inside the *gate* (a shared lock),
unlinking happens inside the closed gate (exclusive), so no blob vanishes between the two.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


class Gate:
    """`with gate:` lets any number look things up; `with gate.closed():` lets nobody."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._inside = 0
        self._handle = -1
        self._pid = 0

    def __enter__(self) -> None:
        with self._mutex:
            if self._pid != os.getpid():  # a lock taken before a fork belongs to the parent
                self._handle, self._pid, self._inside = self._open(), os.getpid(), 0
            if self._inside == 0:
                fcntl.flock(self._handle, fcntl.LOCK_SH)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            self._inside -= 1
            if self._inside == 0:
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Wait until everyone is out and keep everyone out. Never call it from inside the gate."""
        handle = self._open()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def close(self) -> None:
        """Give the file handle back."""
        with self._mutex:
            if self._handle >= 0 and self._pid == os.getpid():
                os.close(self._handle)
            self._handle, self._pid = -1, 0

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


class Lease:
    """What one running build relies on. `named` holds what it has already said."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.named: set[str] = set()

    def names(self, things: Iterable[str]) -> None:
        """Rely on these (digests, `tree:NAME`) until the lease ends. Call inside the gate."""
        new = [thing for thing in things if thing not in self.named]
        if new:
            os.write(self._handle, ("\n".join(new) + "\n").encode())
            self.named.update(new)


@dataclass(frozen=True, slots=True)
class Holding:
    """A live lease as garbage collection sees it: since when (nanoseconds), by whom, over what."""

    started: int
    who: str
    things: frozenset[str]


class Leases:
    """The leases of one store, and its gate. `current` is this process's lease, if it holds one."""

    def __init__(self, root: Path) -> None:
        self._root = str(root / "leases")
        self._tmp = str(root / "tmp")
        os.makedirs(self._root, exist_ok=True)
        os.makedirs(self._tmp, exist_ok=True)
        self.gate = Gate(str(root / "gate"))
        self.current: Lease | None = None
        self._depth = 0
        self._mutex = threading.Lock()

    @contextmanager
    def hold(self, who: str = "") -> Iterator[Lease]:
        """Hold a lease for as long as the block runs; nested and parallel blocks of a process share one."""
        with self._mutex:
            if self.current is None:
                self.current, self._path = self._begin(who)
            self._depth += 1
            lease = self.current
        try:
            yield lease
        finally:
            with self._mutex:
                self._depth -= 1
                if self._depth == 0:
                    self.current = None
                    with suppress(FileNotFoundError):
                        os.unlink(self._path)
                    os.close(lease._handle)

    def live(self) -> list[Holding]:
        """Every lease whose build still runs. Files of builds that were killed are removed."""
        found = []
        for entry in os.scandir(self._root):
            with suppress(FileNotFoundError), open(entry.path, "rb") as stream:
                if _dead(stream.fileno()):
                    os.unlink(entry.path)
                elif holding := _parse(stream.read(), os.fstat(stream.fileno()).st_ctime_ns):
                    found.append(holding)
        return found

    def _begin(self, who: str) -> tuple[Lease, str]:
        """A new lease, locked before anyone can see its file."""
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        hidden, path = f"{self._tmp}/{name}", f"{self._root}/{name}"
        handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        started = os.fstat(handle).st_ctime_ns  # not time.time(): files are stamped by a coarser clock
        os.write(handle, f"{started} {who}\n".encode())
        with self.gate:
            os.rename(hidden, path)
        return Lease(handle), path


def _dead(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse(data: bytes, changed: int) -> Holding:
    head, *things = data.decode(errors="replace").splitlines() or [""]
    started, _, who = head.partition(" ")
    since = int(started) if started.isdecimal() else changed
    return Holding(since, who, frozenset(things))
