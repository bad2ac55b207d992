"""`kbuild log`: what a node printed when it was built, or when it failed."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kairosbuild.cli import given, logs
from kairosbuild.cli.running import running
from kairosbuild.core.errors import InputError
from kairosbuild.execute import engine
from kairosbuild.execute.selection import only

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts


def main(arguments: argparse.Namespace) -> int:
    """Print the log of the node's present result, else of its last failure."""
    arguments.nodes = [arguments.node]
    with running(arguments) as parts:
        planned = engine.plan(parts.request(), parts.wiring(), parts.events)
        node = only(arguments.node, [one.name for one in planned])
        key = next((one.key for one in planned if one.name == node and one.state == "hit"), "")
        log = _of_result(parts, key)
        built = log is not None
        if log is None:
            log = _of_failure(parts, node)
    if arguments.json:
        given.print_json({"node": node, "built": built, "log": log.decode("utf-8", "replace")})
    else:
        sys.stdout.buffer.write(log)
    return 0


def _of_result(parts: Parts, key: str) -> bytes | None:
    """The log in the record of a result; None when there is no result."""
    record = parts.store.actions.peek(key) if key else None
    if record is None:
        return None
    if not record.log:
        return b""
    parts.bring([record.log])
    return parts.store.cas.read(record.log)


def _of_failure(parts: Parts, node: str) -> bytes:
    failed = logs.place(parts.store_root(), parts.arguments.recipe, node)
    if not failed.exists():
        raise InputError(f"{node} has not been built", reason="no-log", hint="kbuild run builds it")
    return failed.read_bytes()
