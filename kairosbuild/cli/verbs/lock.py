"""`kbuild lock`: resolve every mutable input into the lock file beside the recipe."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given
from kairosbuild.cli.running import running
from kairosbuild.cli.style import style
from kairosbuild.execute import engine


def main(arguments: argparse.Namespace) -> int:
    """Resolve what is not resolved yet, and anew what was named."""
    with running(arguments) as parts:
        done = engine.lock(parts.request(), parts.wiring(), parts.events, arguments.update)
    if arguments.json:
        given.print_json({"resolved": done})
    else:
        print("\n".join(f"{style.green('locked')}  {name}" for name in done) or "the lock is current")
    return 0
