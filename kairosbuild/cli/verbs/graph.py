"""`kbuild graph`: draw the graph as dot, mermaid or SVG."""

from __future__ import annotations

import argparse
import sys

from kairosbuild.cli import given


def main(arguments: argparse.Namespace) -> int:
    """Print the drawing."""
    from kairosbuild.graph import draw

    recipe = given.recipe(arguments)
    nodes = {node.name: node.kind for node in recipe.nodes}
    edges = given.edges(recipe)
    sys.stdout.write(getattr(draw, arguments.format)(edges, nodes))
    return 0
