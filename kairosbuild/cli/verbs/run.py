"""`kbuild run`: plan, build and publish. The command that everyone knows."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.running import failures, outcome_json, running, summary
from kairosbuild.cli.sharing import share
from kairosbuild.cli.style import err
from kairosbuild.core.errors import HostError
from kairosbuild.execute.engine import evaluate
from kairosbuild.execute.selection import chosen

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome


def main(arguments: argparse.Namespace) -> int:
    """Build what was asked for, copy it out, publish it."""
    began = time.monotonic()
    copies = given.pairs(arguments.output, "--output")
    with running(arguments) as parts:
        outcome, published = _run(parts, copies)
        code = failures(parts, outcome)
    if arguments.json:
        outcome_json(outcome, published=published, seconds=round(time.monotonic() - began, 3))
    elif arguments.progress != "none":
        _tell(outcome, published, time.monotonic() - began, dry=arguments.dry_run)
    return code


def _run(parts: Parts, copies: Mapping[str, str]) -> tuple[Outcome, list[dict[str, Any]]]:
    """Build, copy, publish; once more when a shared cache turns out to lack what it promised."""
    for last in (False, True):
        outcome = evaluate(parts.request(), parts.wiring(), parts.events)
        if not outcome.ok:
            return outcome, []
        share(parts, outcome)
        try:
            _copy_out(parts, outcome, copies)
            return outcome, _publish(parts, outcome)
        except HostError as problem:
            if problem.reason != "blob-evicted" or last:
                raise
            parts.events.emit("note", message=f"{problem.message}; it is made again")
    raise AssertionError("the last attempt returns or raises")


def _publish(parts: Parts, outcome: Outcome) -> list[dict[str, Any]]:
    from kairosbuild.cli import publishing

    asked = chosen(parts.arguments.nodes, outcome.names())
    targets = [name for name in outcome.publish.targets if not asked or name in asked]
    gates = outcome.publish.gates(targets)
    if parts.arguments.no_publish or not targets:
        return []
    if missing := [gate for gate in gates if not outcome.has(gate)]:
        parts.events.emit("note", message=f"not published: {', '.join(missing)} did not run")
        return []
    return publishing.publish(parts, outcome, targets, publishing.destination(parts, outcome))


def _copy_out(parts: Parts, outcome: Outcome, copies: Any) -> None:
    for node, file in copies.items():
        from kairosbuild.cli.copying import copy_out

        copy_out(parts, outcome, node, file)


def _tell(outcome: Outcome, published: list[dict[str, Any]], seconds: float, *, dry: bool) -> None:
    out = sys.stderr
    for row in published:
        state = err.dim("as before") if row["skipped"] else err.green("published")
        if dry and not row["skipped"]:
            from kairosbuild.cli.verbs.cache import size

            state = err.yellow(f"would send {size(row['uploaded'])}")
        print(f"{state}  {row['references'][0]}  {err.dim(row['digest'])}", file=out)
    mark = err.green("done") if outcome.ok else err.red("stopped" if outcome.interrupted else "failed")
    print(f"{mark}  {outcome.name}: {summary(outcome)}  {err.dim(f'{seconds:.2f} s')}", file=out)
    if (
        outcome.ok
        and published
        and not dry
        and os.environ.get("CI") is None
        and published[0]["references"][0].startswith("oci:")
    ):
        image = published[0]["references"][0]
        print(err.dim(f"try:   podman run --rm -it {image} sh"), file=out)
