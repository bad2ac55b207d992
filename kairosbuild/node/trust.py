"""Signatures: with keys declared, only manifests that one of them signed are taken.

A signature is what `cosign sign --key` and `publish: {sign: …}` leave, in either form: under the tag `sha256-HEX.sig`
a payload that names the manifest's digest, and a signature over its bytes (cosign's SIGNATURE_SPEC); or, as a
referrer, a Sigstore bundle whose envelope (DSSE) holds an in-toto statement about the manifest.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from kairosbuild.node import openssl
from kairosbuild.node.offer import Verify
from kairosbuild.node.problem import Problem
from kairosbuild.node.registry import Manifest, Repository

_SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
_CLAIM = "cosign container image signature"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_IN_TOTO = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/"
_SIGN = "https://sigstore.dev/cosign/sign/v1"

Judge = Callable[[str, bytes, bytes], bool]
"""Whether a key (PEM) signed these bytes with this signature."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Signed bytes, a signature of them, and the digests that they say are right."""

    signed: bytes
    signature: bytes
    about: tuple[str, ...]


def verifier(keys: Sequence[str], judge: Judge = openssl.verifies) -> Verify:
    """What judges a manifest: everything passes without keys. Raises Problem `not-signed`."""

    def holds(one: Signature, manifest: Manifest) -> bool:
        return manifest.digest in one.about and any(judge(key, one.signed, one.signature) for key in keys)

    def verify(repository: Repository, manifest: Manifest) -> None:
        if keys and not any(holds(one, manifest) for one in _signatures(repository, manifest)):
            raise Problem(
                f"{repository.name}@{manifest.digest} is not signed by a key that this machine trusts",
                reason="not-signed",
                hint="sign image and boot artifact when they are published; nothing was taken over",
            )

    return verify


def _signatures(repository: Repository, manifest: Manifest) -> Iterator[Signature]:
    """What lies beside the manifest, in either form; what cannot be read is none."""
    for found in (_tagged(repository, manifest), _bundled(repository, manifest)):
        for read in found:
            try:
                yield from read()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue


Read = Callable[[], Iterator[Signature]]


def _tagged(repository: Repository, manifest: Manifest) -> Iterator[Read]:
    """The older form: a manifest under a tag that follows from the digest, a layer for each signature."""
    try:
        found = repository.manifest(f"{_tag(manifest)}.sig")
    except Problem as problem:
        if problem.reason != "registry-not-found":
            raise
        return
    for layer in found.layers:
        if layer.media_type == _SIMPLE:
            payload, encoded = repository.small(layer), layer.annotations.get(_SIGNATURE, "")
            yield partial(_simple, payload, encoded)


def _bundled(repository: Repository, manifest: Manifest) -> Iterator[Read]:
    """The newer form: referrers, a bundle each."""
    for digest in repository.referrers(manifest.digest, _BUNDLE, f"{_tag(manifest)}."):
        for layer in repository.manifest(digest).layers:
            data = repository.small(layer)
            yield partial(_enveloped, data)


def _simple(payload: bytes, encoded: str) -> Iterator[Signature]:
    critical = json.loads(payload)["critical"]
    if critical["type"] == _CLAIM:
        signature = base64.b64decode(encoded, validate=True)
        yield Signature(payload, signature, (str(critical["image"]["docker-manifest-digest"]),))


def _enveloped(bundle: bytes) -> Iterator[Signature]:
    """The signatures of a bundle whose statement is that of `cosign sign`; one about a list of contents is none."""
    envelope = json.loads(bundle)["dsseEnvelope"]
    kind, payload = str(envelope["payloadType"]), base64.b64decode(envelope["payload"], validate=True)
    said = json.loads(payload)
    if kind == _IN_TOTO and said["predicateType"] == _SIGN and said["_type"].startswith(_STATEMENT):
        about = tuple(f"sha256:{one['digest']['sha256']}" for one in said["subject"])
        signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        for one in envelope["signatures"]:
            yield Signature(signed, base64.b64decode(one["sig"], validate=True), about)


def _tag(manifest: Manifest) -> str:
    return manifest.digest.replace(":", "-")
