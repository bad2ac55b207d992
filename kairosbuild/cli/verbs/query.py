"""`kbuild query`: what a node needs, what needs it, and why two are connected."""

from __future__ import annotations

import argparse
import sys

from kairosbuild.cli import given
from kairosbuild.execute.selection import only


def main(arguments: argparse.Namespace) -> int:
    """Print the answer, a name a line; an empty answer is an answer."""
    from kairosbuild.graph import query

    edges = given.edges(given.recipe(arguments.recipe, arguments.set))
    answer = query.ask(edges, arguments.question, [only(name, edges) for name in arguments.nodes])
    if arguments.json:
        given.print_json(answer)
    elif answer and arguments.question == "somepath":
        print(" → ".join(answer))
    elif answer:
        print("\n".join(answer))
    else:
        print("nothing", file=sys.stderr)
    return 0
