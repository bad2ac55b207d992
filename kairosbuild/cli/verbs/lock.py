"""`kbuild lock`: resolve every mutable input into the lock file beside the recipe."""

from __future__ import annotations

import argparse
import dataclasses

from kairosbuild.cli import given
from kairosbuild.cli.lockdiff import Change, changes
from kairosbuild.cli.running import running
from kairosbuild.cli.style import out
from kairosbuild.execute import engine

_COLOURS = {"up": out.green, "added": out.green, "down": out.red, "removed": out.red}


def main(arguments: argparse.Namespace) -> int:
    """Resolve what is not resolved yet, and anew what was named; with --diff only tell what that changes."""
    update = [] if arguments.diff and arguments.update is None else arguments.update
    with running(arguments) as parts:
        done = engine.lock(parts.request(), parts.wiring(), parts.events, update, write=not arguments.diff)
    found = changes(done.before, done.after)
    if arguments.json:
        rows = [dataclasses.asdict(change) for change in found]
        given.print_json({"resolved": done.resolved, "written": not arguments.diff, "changes": rows})
        return 0
    for change in found:
        print(_line(change))
    if not found:
        print("the lock is current" if not done.resolved else "resolved anew, and nothing changed")
    elif arguments.diff:
        print(out.dim("nothing was written; kbuild lock --update writes it"))
    return 0


def _line(change: Change) -> str:
    word, _, rest = change.line().partition(" ")
    colour = _COLOURS.get(change.how, out.cyan)
    return f"{change.node + ':':16} {colour(word)} {rest.strip()}"
