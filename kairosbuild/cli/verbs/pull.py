"""`kbuild pull`: get a published artifact back, verified."""

from __future__ import annotations

import argparse
from pathlib import Path

from kairosbuild.cli import given
from kairosbuild.cli.progress import reporter
from kairosbuild.cli.wiring import registries
from kairosbuild.core.events import Events


def main(arguments: argparse.Namespace) -> int:
    """Write the artifact's titled files; print their paths."""
    from kairosbuild.registry.pull import pull

    shown = reporter(arguments.progress)
    moved: list[int] = []
    events = Events(
        shown,
        lambda event: moved.append(event.data.get("bytes", 0)) if event.type == "transfer-finished" else None,
    )
    try:
        seeds = tuple(map(Path, arguments.seed))
        files = registries(arguments).first(
            arguments.reference,
            lambda target, version: pull(
                target, version or "latest", Path(arguments.output), events, seeds=seeds
            ),
        )
    finally:
        shown.close()
    if arguments.json:
        given.print_json({"files": [str(file) for file in files], "fetched": sum(moved)})
    else:
        print("\n".join(map(str, files)))
    return 0
