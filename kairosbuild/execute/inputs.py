"""The files a graph was made from, and how to know the next time that it need not be made again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import cast

from kairosbuild.execute.memo import found
from kairosbuild.execute.snapshot import Identity, young


class Inputs:
    """Looks at the files before they are read, and again when the run is over."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._included: tuple[str, ...] = ()
        self._before: dict[str, tuple[list[int] | None, str]] = {}

    def look(self) -> None:
        """Call before the files are read."""
        self._before = {path: _state(path) for path in self._paths}

    def included(self, files: Iterable[tuple[str, str]]) -> None:
        """These files were read too: each path, and the sha256 of what was read."""
        self._included = tuple(path for path, _ in files)
        self._before |= {path: (found(path), digest) for path, digest in files}

    def wrote(self, path: str) -> None:
        """We wrote this one ourselves, since."""
        if path in self._before:
            self._before[path] = _state(path)

    def identities(self) -> list[tuple[str, list[int] | None]]:
        """Each path with the identity that vouches for what was read, or one that nothing has.

        A file so young that a write might have left its identity alone, or one that changed meanwhile,
        is read again the next time.
        """
        return [(path, self._vouched(path)) for path in self._paths]

    def includes(self) -> list[tuple[str, list[int] | None]]:
        """The same of the included files, which only the recipe knows."""
        return [(path, self._vouched(path)) for path in self._included]

    def _vouched(self, path: str) -> list[int] | None:
        now = time.time_ns()
        state = _state(path)
        identity = state[0]
        same = path in self._before and state == self._before[path]
        if identity is None and same:
            return None
        if not same or identity is None or young(cast(Identity, tuple(identity)), now):
            return []
        return identity


def _state(path: str) -> tuple[list[int] | None, str]:
    identity = found(path)
    return identity, sha256(Path(path).read_bytes()).hexdigest() if identity else ""
