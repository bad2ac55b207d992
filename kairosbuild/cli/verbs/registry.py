"""`kbuild registry`: what is done to a repository as a whole."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.cli.wiring import registries
from kairosbuild.core.errors import InputError


def main(arguments: argparse.Namespace) -> int:
    """Prune a repository, or make an index of what it holds."""
    found = {"prune": _prune, "index": _index}[arguments.question](arguments)
    if arguments.json:
        given.print_json(found)
        return 0
    state = out.yellow("would go") if arguments.dry_run else out.red("removed")
    for tag in found.get("removed", ()):
        print(f"{state}  {tag}")
    print(found.get("summary", ""))
    return 0


def _prune(arguments: argparse.Namespace) -> dict[str, Any]:
    from kairosbuild.registry.prune import Policy, prune

    if arguments.sources:
        raise InputError("prune takes one repository", reason="bad-usage")
    target, version = registries(arguments).open(arguments.reference)
    if version:
        what = f"{arguments.reference} names one thing, and a repository is pruned"
        raise InputError(what, reason="bad-reference", hint="leave the tag away; --only chooses among them")
    policy = Policy(
        tuple(arguments.only),
        tuple(arguments.keep),
        arguments.keep_last,
        given.seconds(arguments.newer_than, "--newer-than") if arguments.newer_than else None,
    )
    done = prune(target, policy, now=time.time(), dry=arguments.dry_run)
    summary = f"{len(done.removed)} tags and {len(done.manifests)} manifests, {len(done.kept)} tags kept"
    return {**dataclasses.asdict(done), "summary": summary}


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    from kairosbuild.registry.platforms import combine

    target, version = registries(arguments).open(arguments.reference)
    names = []
    for source in arguments.sources:
        other, name = registries(arguments).open(source)
        if other.name != target.name:
            hint = "publish it there first"
            raise InputError(f"{source} is not in {target.name}", reason="bad-reference", hint=hint)
        names.append(name or "latest")
    made = combine(target, version or "latest", names, dry=arguments.dry_run)
    rows = [f"{platform}  {digest}" for platform, digest in made.platforms.items()]
    return {**dataclasses.asdict(made), "summary": "\n".join([*rows, f"{target.name}@{made.digest}"])}
