"""Where a workspace is and where its store is, found without reading YAML when nothing says otherwise.

A build in which nothing changed starts here, so this imports little and reads less.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

FILE = "BUILD.yaml"


def root_of(start: str, recipe: str | None) -> str | None:
    """The folder of the workspace file for work in `start` on this recipe, or None when there is none."""
    root = _above(start)
    if recipe is None or (root and _within(os.path.abspath(recipe), root)):
        return root
    return _above(os.path.dirname(os.path.abspath(recipe)))


def default_root(start: str, recipe: str | None) -> str:
    """The workspace of a recipe without one: its folder, or the one above a folder called `recipes`."""
    folder = os.path.dirname(os.path.abspath(recipe)) if recipe else os.path.abspath(start)
    return os.path.dirname(folder) if os.path.basename(folder) == "recipes" else folder


def plain_cache(start: str, recipe: str | None, user: str) -> str | None:
    """The default store folder, or None when a settings file may name another one and must be read.

    A setting can only come from a file in which its name stands, so looking for the word is enough.
    """
    root = root_of(start, recipe)
    if _mentions(user, b"cache") or (root and _mentions(f"{root}/{FILE}", b"cache")):
        return None
    return f"{root or default_root(start, recipe)}/cache"


def user_file(environ: Mapping[str, str]) -> str:
    """Where a person's own settings are."""
    home = environ.get("XDG_CONFIG_HOME", "")
    base = (
        home
        if home.startswith("/")
        else os.path.join(environ.get("HOME") or str(Path("~").expanduser()), ".config")
    )
    return os.path.join(base, "kairosbuild", "config.yaml")


def above(folder: str) -> list[str]:
    """This folder and every one above it."""
    found = [folder]
    while (parent := os.path.dirname(folder)) != folder:
        found.append(folder := parent)
    return found


def _above(folder: str) -> str | None:
    return next((each for each in above(os.path.abspath(folder)) if os.path.isfile(f"{each}/{FILE}")), None)


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _mentions(file: str, word: bytes) -> bool:
    try:
        with open(file, "rb") as stream:
            return word in stream.read()
    except OSError:
        return False
