"""Files that are whole or absent, whenever the power goes: written beside, synced, renamed, folder synced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, data: bytes) -> None:
    """Replace a file by these bytes, at once or not at all."""
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(data)
        sync(file.fileno())
    move(beside, path)


def write_json(path: Path, value: Any) -> None:
    """The same for a document."""
    write(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def move(source: Path, target: Path) -> None:
    """Rename a file whose content is synced, and let the folder know for good."""
    source.replace(target)
    sync_folder(target.parent)


def remove(path: Path) -> None:
    """Unlink a file, for good."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(handle)
    finally:
        os.close(handle)


sync: Callable[[int], None] = os.fsync
