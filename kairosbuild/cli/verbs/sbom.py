"""`kbuild sbom`: the inventory of what a recipe builds, or of what a reference was published with."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.running import failures, running
from kairosbuild.core.errors import InputError
from kairosbuild.execute.engine import evaluate

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome


def main(arguments: argparse.Namespace) -> int:
    """Print it; of a recipe it is made now, from the graph."""
    return told(arguments, arguments.format)


def told(arguments: argparse.Namespace, form: str) -> int:
    """Print a document of this form (`spdx`, `cyclonedx`, `provenance`)."""
    if not is_recipe(arguments.recipe):
        sys.stdout.buffer.write(_attached(arguments, form) + b"\n")
        return 0
    with running(arguments) as parts:
        outcome = evaluate(parts.request(), parts.wiring(), parts.events)
        code = failures(parts, outcome)
        if not code:
            document = _made(parts, outcome, form)
    if not code:
        print(json.dumps(document, indent=None if arguments.json else 2, sort_keys=True))
    return code


def is_recipe(text: str) -> bool:
    """Whether this names a recipe file rather than a reference."""
    return Path(text).is_file() or given.names_recipe(text)


def _made(parts: Parts, outcome: Outcome, form: str) -> Any:
    from kairosbuild.cli.proofs import Proofs
    from kairosbuild.cli.publishing import manifest_of

    proofs = Proofs(parts, outcome)
    node = _node(parts, outcome)
    if form == "provenance":
        return proofs.provenance(node)
    found = proofs.sbom(form, node, manifest_of(parts, outcome, node))
    if found is None:
        raise InputError(f"{node} is made from no image: nothing is known to list", reason="no-sbom")
    return found


def _node(parts: Parts, outcome: Outcome) -> str:
    """The node asked for, else the first one published, else the last image."""
    from kairosbuild.execute.selection import chosen

    asked = chosen(parts.arguments.nodes, outcome.names()) if parts.arguments.nodes else ()
    images = [name for name in outcome.names() if outcome.has(name) and "image" in outcome.outputs(name)]
    for name in (*asked, *outcome.publish.targets, *images[-1:]):
        if outcome.has(name):
            return str(name)
    raise InputError("the recipe builds no image", reason="no-sbom", hint="name a node")


def _attached(arguments: argparse.Namespace, form: str) -> bytes:
    """What was attached to a published digest, of this form."""
    from kairosbuild.cli.wiring import registries
    from kairosbuild.proof import cyclonedx, spdx, statement
    from kairosbuild.registry import referrers

    target, version = registries(arguments).open(arguments.recipe)
    digest = target.get_manifest(version).blob.digest
    media = {"spdx": spdx.MEDIA_TYPE, "cyclonedx": cyclonedx.MEDIA_TYPE, "provenance": statement.IN_TOTO}[
        form
    ]
    for one in referrers.listed(target, digest, media):
        for _, data in referrers.files(target, one):
            if form != "provenance" or statement.read_statement(data).predicate_type == statement.SLSA:
                return data
    where = f"{target.name}@{digest}"
    raise InputError(f"{where} has no {form} attached", reason=f"no-{form}", hint="publish it with kbuild")
