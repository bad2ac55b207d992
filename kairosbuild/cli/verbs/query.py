"""`kbuild query`: what a node needs, what needs it, and why two are connected."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given


def main(arguments: argparse.Namespace) -> int:
    """Print the answer, a name a line; an empty answer is an answer."""
    from kairosbuild.graph import query

    recipe = given.recipe(arguments)
    answer = query.ask(given.edges(recipe), arguments.question, arguments.nodes)
    if arguments.json:
        given.print_json(answer)
    elif arguments.question == "somepath":
        print(" → ".join(answer))
    else:
        print("\n".join(answer), end="\n" if answer else "")
    return 0
