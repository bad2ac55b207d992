"""Signatures: with keys declared, only manifests that one of them signed are taken.

A signature is what `cosign sign --key` and `publish: {sign: …}` leave under the tag `sha256-HEX.sig`: a payload that
names the manifest's digest, and a signature over its bytes (cosign's SIGNATURE_SPEC).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence

from kairosbuild.node import openssl
from kairosbuild.node.offer import Verify
from kairosbuild.node.problem import Problem
from kairosbuild.node.registry import Manifest, Repository

_SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_CLAIM = "cosign container image signature"

Judge = Callable[[str, bytes, bytes], bool]
"""Whether a key (PEM) signed these bytes with this signature."""


def verifier(keys: Sequence[str], judge: Judge = openssl.verifies) -> Verify:
    """What judges a manifest: everything passes without keys. Raises Problem `not-signed`."""

    def verify(repository: Repository, manifest: Manifest) -> None:
        if keys and not any(_holds(keys, judge, *one, manifest) for one in _signatures(repository, manifest)):
            raise Problem(
                f"{repository.name}@{manifest.digest} is not signed by a key that this machine trusts",
                reason="not-signed",
                hint="sign image and boot artifact when they are published; nothing was taken over",
            )

    return verify


def _signatures(repository: Repository, manifest: Manifest) -> Iterator[tuple[bytes, bytes]]:
    """Payload and signature, as they lie beside the manifest."""
    try:
        found = repository.manifest(f"{manifest.digest.replace(':', '-')}.sig")
    except Problem as problem:
        if problem.reason != "registry-not-found":
            raise
        return
    for layer in found.layers:
        if layer.media_type == _SIMPLE:
            try:
                signature = base64.b64decode(layer.annotations.get(_SIGNATURE, ""), validate=True)
            except ValueError:
                continue
            yield repository.small(layer), signature


def _holds(keys: Sequence[str], judge: Judge, payload: bytes, signature: bytes, manifest: Manifest) -> bool:
    try:
        critical = json.loads(payload)["critical"]
        about = critical["image"]["docker-manifest-digest"] == manifest.digest and critical["type"] == _CLAIM
    except (ValueError, KeyError, TypeError):
        return False
    return bool(about) and any(judge(key, payload, signature) for key in keys)
