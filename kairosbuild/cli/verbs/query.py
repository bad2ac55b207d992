"""`kbuild query`: what a node needs, what needs it, and why two are connected."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given


def main(arguments: argparse.Namespace) -> int:
    """Print the answer, a name a line; an empty answer is an answer."""
    from kairosbuild.graph import query

    recipe = given.recipe(arguments)
    edges = {
        node.name: tuple(dict.fromkeys(name for names in node.refs.values() for name in names))
        for node in recipe.nodes
    }
    answer = query.ask(edges, arguments.question, arguments.nodes)
    if arguments.json:
        given.print_json(answer)
    elif arguments.question == "somepath":
        print(" → ".join(answer))
    else:
        print("\n".join(answer), end="\n" if answer else "")
    return 0
