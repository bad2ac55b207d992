"""What this machine has lately put into a shared cache, so that a build in which nothing changed asks nobody."""

from __future__ import annotations

import time
from pathlib import Path

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.digest import of_bytes

_DAY = 86_400  # seconds: a registry may lose things, so nothing is believed for longer


class Known:
    """Keys that were put into the repository `name` or seen there; kept in a file of `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / of_bytes(name.encode()).hex[:40]
        self._began, self._keys = self._load()
        self._new = False

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        """Remember one more."""
        self._keys.add(key)
        self._new = True

    def save(self) -> None:
        """Keep them for the next run."""
        if self._new:
            write_bytes(self._file, "\n".join([str(self._began), *sorted(self._keys)]).encode())
            self._new = False

    def _load(self) -> tuple[int, set[str]]:
        now = int(time.time())
        try:
            first, *keys = self._file.read_text().split("\n")
            if now - _DAY < int(first) <= now:
                return int(first), set(keys)
        except (OSError, ValueError):
            pass
        return now, set()
