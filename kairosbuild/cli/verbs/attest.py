"""`kbuild attest`: say something about what a reference names, signed (in-toto)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kairosbuild.cli import given, signing
from kairosbuild.cli.style import out
from kairosbuild.core.errors import InputError


def main(arguments: argparse.Namespace) -> int:
    """Attach the predicate in a file, in both forms that cosign reads."""
    from kairosbuild.keys import keys
    from kairosbuild.proof.signing import attest
    from kairosbuild.proof.statement import PREDICATES

    predicate = _predicate(arguments.predicate)
    kind = PREDICATES.get(arguments.type, arguments.type)
    if ":" not in kind:
        known = ", ".join(PREDICATES)
        raise InputError(f"--type {kind}: not a URI", reason="bad-usage", hint=f"a URI, or one of {known}")
    signer = keys.signer(arguments.key)
    target, manifest = signing.opened(arguments)
    with target.writing():
        attest(target, manifest, signing.name_of(target), kind, predicate, signer)
    if arguments.json:
        given.print_json({"reference": arguments.reference, "digest": manifest.blob.digest, "type": kind})
    else:
        print(f"{out.green('attested')}  {kind}  {out.dim(manifest.blob.digest)}")
    return 0


def _predicate(file: str) -> Any:
    try:
        found = json.loads(Path(file).read_bytes())
    except OSError as problem:
        raise InputError(f"{file}: {problem.strerror}", reason="bad-predicate") from None
    except ValueError as problem:
        raise InputError(f"{file} is no JSON: {problem}", reason="bad-predicate") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: a predicate is a JSON object", reason="bad-predicate")
    return found
