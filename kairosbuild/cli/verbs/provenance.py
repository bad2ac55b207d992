"""`kbuild provenance`: what a node was made from, as SLSA has it; of a recipe, or as it was published."""

from __future__ import annotations

import argparse

from kairosbuild.cli.verbs import sbom


def main(arguments: argparse.Namespace) -> int:
    """Print the predicate of a recipe's node, or the statement that a reference was published with."""
    return sbom.told(arguments, "provenance")
