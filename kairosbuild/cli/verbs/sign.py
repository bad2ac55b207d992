"""`kbuild sign`: sign what a reference names, so that `cosign verify --key` and we can tell."""

from __future__ import annotations

import argparse

from kairosbuild.cli import given, signing
from kairosbuild.cli.style import out


def main(arguments: argparse.Namespace) -> int:
    """Sign the manifest by its digest; signing again with the same key changes nothing."""
    from kairosbuild.keys import keys
    from kairosbuild.proof.signing import sign

    signer = keys.signer(arguments.key)
    target, manifest = signing.opened(arguments)
    with target.writing():
        sign(target, manifest, signing.name_of(target), signer)
    if arguments.json:
        given.print_json(
            {"reference": arguments.reference, "digest": manifest.blob.digest, "key": signer.public.id}
        )
    else:
        print(f"{out.green('signed')}  {arguments.reference}  {out.dim(manifest.blob.digest)}")
    return 0
