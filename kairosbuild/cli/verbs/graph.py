"""`kbuild graph`: draw the graph as dot, mermaid or SVG, or tell it as JSON."""

from __future__ import annotations

import argparse
import sys

from kairosbuild.cli import given


def main(arguments: argparse.Namespace) -> int:
    """Print the drawing."""
    from kairosbuild.graph import draw

    recipe = given.recipe(arguments.recipe, arguments.set)
    nodes = {node.name: node.kind for node in recipe.nodes}
    edges = given.edges(recipe)
    if arguments.json:
        rows = [{"name": name, "kind": kind, "needs": edges[name]} for name, kind in nodes.items()]
        given.print_json({"recipe": recipe.name, "nodes": rows})
        return 0
    sys.stdout.write(getattr(draw, arguments.format)(edges, nodes))
    return 0
