"""`kbuild check`: validate a recipe and say every problem at once."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given
from kairosbuild.cli.style import style


def main(arguments: argparse.Namespace) -> int:
    """Load the recipe; whatever is wrong is raised on the way."""
    recipe = given.recipe(arguments)
    if arguments.json:
        given.print_json({"recipe": recipe.name, "nodes": [node.name for node in recipe.nodes]})
    else:
        print(f"{arguments.recipe}: {style.green('sound')}, {len(recipe.nodes)} nodes")
    return 0
