"""What the verbs that sign and verify share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from kairosbuild.registry.target import Manifest, Target


def opened(arguments: argparse.Namespace) -> tuple[Target, Manifest]:
    """The repository of the reference, and the manifest that it names there."""
    from kairosbuild.cli.wiring import registries

    target, version = registries(arguments).open(arguments.reference)
    return target, target.get_manifest(version)


def name_of(target: Target) -> str:
    """The name that is signed with a manifest: the repository's, or a layout's without its place."""
    if target.name.startswith("oci:"):
        return target.name.rpartition("/")[2].removeprefix("oci:")
    return target.name
