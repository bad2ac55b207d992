"""`kbuild why`: why a node would be rebuilt, in words."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given
from kairosbuild.cli.running import running
from kairosbuild.execute import engine


def main(arguments: argparse.Namespace) -> int:
    """Print the reasons, one a line; say so when there is none."""
    arguments.nodes = [arguments.node]
    with running(arguments) as parts:
        reasons = engine.why(parts.request(), parts.wiring(), parts.events, arguments.node)
    if arguments.json:
        given.print_json({"node": arguments.node, "reasons": reasons})
    else:
        print("\n".join(reasons) or f"{arguments.node} is up to date")
    return 0
