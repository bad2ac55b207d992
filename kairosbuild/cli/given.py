"""What the command line gave, made ready: workspace, variables, the recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.errors import InputError

if TYPE_CHECKING:
    from kairosbuild.recipe.declaration import Recipe
    from kairosbuild.recipe.workspace import Workspace


def workspace(recipe: str | None = None) -> Workspace:
    """The workspace in force here, with the person's own settings."""
    from kairosbuild.recipe.workspace import find, user_file

    return find(Path.cwd(), Path(recipe) if recipe else None, user=user_file(os.environ))


def cache_dir(recipe: str | None) -> str:
    """The store's folder; settings files are read as YAML only when one could name it."""
    from kairosbuild.recipe import places

    found = os.environ.get("KBUILD_CACHE_DIR")
    found = found or places.plain_cache(os.getcwd(), recipe, places.user_file(os.environ))
    return found or str(workspace(recipe).cache.dir)


def says(recipe: str | None, *words: bytes) -> bool:
    """Whether the workspace's file has one of these words; without, nobody need read it as YAML to know."""
    from kairosbuild.recipe import places

    root = places.root_of(os.getcwd(), recipe)
    if root is None:
        return False
    with open(os.path.join(root, "BUILD.yaml"), "rb") as stream:
        data = stream.read()
    return any(word in data for word in words)


def names_recipe(text: str) -> bool:
    """Whether this is the name of a recipe's file, and not a reference or another file."""
    return text.endswith((".yaml", ".yml"))


def recipe(file: str, variables: Iterable[str]) -> Recipe:
    """A recipe under the variables of `--set`, read and validated."""
    from kairosbuild.kinds.table import TABLE
    from kairosbuild.recipe.load import load

    return load(Path(file), TABLE, workspace=workspace(file), set_vars=pairs(variables, "--set"))


def only_recipe() -> str:
    """The recipe that is meant when none is named. Raises `which-recipe`."""
    found = recipes()
    if len(found) > 1:
        raise InputError(
            f"which recipe? The workspace has {len(found)}",
            reason="which-recipe", hint="name one: " + ", ".join(found),
        )  # fmt: skip
    return found[0]


def recipes() -> list[str]:
    """The workspace's recipes, as seen from here. Raises `no-recipe` for none."""
    found = workspace().recipe_files()
    if not found:
        raise InputError(
            "no recipe was named, and none is here", reason="no-recipe",
            hint="kbuild init makes a workspace with one",
        )  # fmt: skip
    return [os.path.relpath(file) for file in found]


def edges(recipe: Recipe) -> Mapping[str, tuple[str, ...]]:
    """Every node of a recipe with the nodes it names, each once."""
    return {
        node.name: tuple(dict.fromkeys(name for names in node.refs.values() for name in names))
        for node in recipe.nodes
    }


def pairs(words: Iterable[str], flag: str) -> Mapping[str, str]:
    """`K=V` words as a mapping."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise InputError(f"{flag} {word}: not of the form NAME=VALUE", reason="bad-usage")
        found[key] = value
    return found


def seconds(text: str, flag: str) -> int:
    """An age such as 90, 12h or 30d."""
    return number(text, {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}, flag)


def number(text: str, units: Mapping[str, int], flag: str) -> int:
    """A number with one of these units behind it, or none."""
    count, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "")
    if not count.isdigit():
        known = ", ".join(units)
        raise InputError(f"{flag} {text}: not a number with one of {known} behind it", reason="bad-usage")
    return int(count) * units.get(unit, 1)


def print_json(document: Any) -> None:
    """One line of JSON on stdout."""
    import json

    print(json.dumps(document, ensure_ascii=False, default=str))
