"""Whole logs of failed nodes, kept until they fail again. A result has its log in its record."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING

from kairosbuild.core.atomic import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kairosbuild.core.errors import KbuildError


def place(store_root: str, recipe: str, node: str) -> Path:
    """Where the log of this node's last failure is."""
    from pathlib import Path

    name = sha256(os.path.abspath(recipe).encode()).hexdigest()[:16]
    return Path(store_root, "logs", f"{name}-{node.replace('/', '_')}.log")


def keep(store_root: str, recipe: str, node: str, problem: KbuildError) -> None:
    """Keep the log that came with a failure, if one did."""
    log = getattr(problem, "log", b"")
    if isinstance(log, bytes) and log:
        write_bytes(place(store_root, recipe, node), log)
