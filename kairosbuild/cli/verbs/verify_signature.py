"""`kbuild verify-signature`: whether a key signed what a reference names; what cosign signed counts too."""

from __future__ import annotations

import argparse
import dataclasses

from kairosbuild.cli import given, signing
from kairosbuild.cli.style import out


def main(arguments: argparse.Namespace) -> int:
    """Print the signatures that hold, and the attestations under them; exit 2 where there is none."""
    from kairosbuild.keys import keys
    from kairosbuild.proof.signing import attestations, verify

    key = keys.verifier(arguments.key)
    target, manifest = signing.opened(arguments)
    digest = manifest.blob.digest
    found = verify(target, digest, key)
    said = attestations(target, digest, key)
    if arguments.json:
        given.print_json(
            {
                "reference": arguments.reference,
                "digest": digest,
                "key": key.id,
                "signatures": [one.form for one in found],
                "attestations": [dataclasses.asdict(one) for one in said],
            }
        )
        return 0
    print(f"{out.green('signed')}  {arguments.reference}  {out.dim(digest)}  by {key.id}")
    for kind in sorted({one.predicate_type for one in said}):
        print(f"{out.green('attested')}  {kind}")
    return 0
