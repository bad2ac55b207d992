"""`kbuild log`: what a node printed when it was built, or when it failed."""

from __future__ import annotations

import argparse
import sys

from kairosbuild.cli import logs
from kairosbuild.cli.running import running
from kairosbuild.core.errors import InputError
from kairosbuild.execute import engine
from kairosbuild.execute.selection import only


def main(arguments: argparse.Namespace) -> int:
    """Print the log of the node's present result, else of its last failure."""
    arguments.nodes = [arguments.node]
    with running(arguments) as parts:
        planned = engine.plan(parts.request(), parts.wiring(), parts.events)
        arguments.node = only(arguments.node, [one.name for one in planned])
        key = next((one.key for one in planned if one.name == arguments.node and one.state == "hit"), "")
        record = parts.store.actions.peek(key) if key else None
        failed = logs.place(parts.store_root(), arguments.recipe, arguments.node)
        if record and record.log:
            parts.bring([record.log])
            data = parts.store.cas.read(record.log)
        elif failed.exists() and not record:
            data = failed.read_bytes()
        elif record:
            data = b""
        else:
            raise InputError(
                f"{arguments.node} has not been built", reason="no-log", hint="kbuild run builds it"
            )
    sys.stdout.buffer.write(data)
    return 0
