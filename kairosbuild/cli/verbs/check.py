"""`kbuild check`: validate recipes and say every problem at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.core.errors import KbuildError, Problems, raise_problems

if TYPE_CHECKING:
    from kairosbuild.recipe.declaration import Recipe


def main(arguments: argparse.Namespace) -> int:
    """Load the recipes, all of the workspace's when none is named; raise what is wrong with any."""
    sound: dict[str, Recipe] = {}
    problems: list[KbuildError] = []
    for file in arguments.recipes or given.recipes():
        try:
            sound[file] = given.recipe(file, arguments.set)
        except KbuildError as problem:
            problems += problem.problems if isinstance(problem, Problems) else [problem]
    raise_problems(problems)
    if arguments.json:
        given.print_json({"recipes": {file: _document(recipe) for file, recipe in sound.items()}})
    else:
        for file, recipe in sound.items():
            print(f"{file}: {out.green('sound')}, {len(recipe.nodes)} nodes")
    return 0


def _document(recipe: Recipe) -> dict[str, object]:
    return {"name": recipe.name, "nodes": [node.name for node in recipe.nodes]}
