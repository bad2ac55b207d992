"""`kbuild plan`: what would run, what is a hit, what waits, and why."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

from kairosbuild.cli import given
from kairosbuild.cli.running import running
from kairosbuild.cli.style import out
from kairosbuild.execute import engine

if TYPE_CHECKING:
    from kairosbuild.execute.plan import Planned


def main(arguments: argparse.Namespace) -> int:
    """Print a line for every node, in build order, and the count of each state."""
    with running(arguments) as parts:
        planned = engine.plan(parts.request(), parts.wiring(), parts.events)
    if arguments.json:
        given.print_json({"nodes": [dataclasses.asdict(one) for one in planned]})
        return 0
    wide = max((len(one.name) for one in planned), default=0)
    widest = max((len(_state(one)) for one in planned), default=0)
    for one in planned:
        paint = {"hit": out.green, "run": out.yellow, "wait": out.dim}[one.state]
        state = paint(f"{_state(one):{widest}}")
        print(f"{state}  {one.name:{wide}}  {one.kind:9}  {out.dim(_about(one))}".rstrip())
    count = Counter[str](one.state for one in planned)
    print(", ".join(f"{count[state]} {state}" for state in ("hit", "run", "wait") if count[state]))
    return 0


def _about(one: Planned) -> str:
    """The first reason, `kbuild why` tells all; or what it waits for."""
    if one.reasons:
        more = f" (and {len(one.reasons) - 1} more)" if len(one.reasons) > 1 else ""
        return one.reasons[0] + more
    return "for " + ", ".join(one.waits) if one.waits else ""


def _state(one: Planned) -> str:
    """What it is, and for a hit where."""
    return f"{one.state} ({one.where})" if one.where else one.state
