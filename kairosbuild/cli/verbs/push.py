"""`kbuild push`: publish what a recipe has built to a registry. Builds what is missing first."""

from __future__ import annotations

import argparse

from kairosbuild.cli.verbs import run


def main(arguments: argparse.Namespace) -> int:
    """A run whose destination was said."""
    arguments.push, arguments.no_publish, arguments.output = arguments.reference, False, []
    arguments.nodes = []
    return run.main(arguments)
