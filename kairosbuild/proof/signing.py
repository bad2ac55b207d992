"""Signatures and attestations at a registry, in both forms that cosign has.

The older form is a tag, `sha256-HEX.sig` or `.att`, whose manifest grows by a layer for each signature. The
newer is a Sigstore bundle as a referrer. Both are written, since the cosign of Debian 13 looks for the one
and that of later releases for the other; either counts when we verify.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kairosbuild.core import canonical
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.keys.keys import PublicKey, Signer
from kairosbuild.proof import statement
from kairosbuild.registry import referrers
from kairosbuild.registry.documents import small_package
from kairosbuild.registry.fetch import read
from kairosbuild.registry.manifests import Image, read_image
from kairosbuild.registry.referrers import File, Referrer, tag_of
from kairosbuild.registry.target import MANIFEST, Descriptor, Manifest, Target

SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_CLAIM = "cosign container image signature"
_ZERO = "0001-01-01T00:00:00Z"  # the time that cosign gives where there is none


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that holds: its form (`tag` or `bundle`), the predicate's type, and what is said."""

    form: str
    predicate_type: str
    predicate: Any


@dataclass(frozen=True, slots=True)
class Known:
    """What a key is known to have said of a manifest already, so that it is not said again."""

    signatures: tuple[Verified, ...]
    attestations: tuple[Verified, ...]


def known(target: Target, digest: str, key: PublicKey) -> Known:
    """Both at once: what is there is read once, however much is to be said."""
    bundles = tuple(_bundles(target, digest, key))
    signed = tuple(one for one in bundles if one.predicate_type == statement.SIGN)
    said = tuple(one for one in bundles if one.predicate_type != statement.SIGN)
    return Known((*_simple_ones(target, digest, key), *signed), (*_envelopes(target, digest, key), *said))


def sign(target: Target, subject: Manifest, name: str, signer: Signer, there: Known | None = None) -> None:
    """Sign a manifest. `name` is the repository's, and is signed with it. Held in `target.writing()`."""
    digest = subject.blob.digest
    there = there or known(target, digest, signer.public)
    forms = {one.form for one in there.signatures}
    if "tag" not in forms:
        payload = _simple(digest, name)
        signature = b64encode(signer.sign(payload)).decode()
        _add_layer(target, digest, "sig", File(SIMPLE, payload, {SIGNATURE: signature}))
    if "bundle" not in forms:
        claim = statement.statement(digest, name, statement.SIGN, {})
        _attach_bundle(target, subject, claim, statement.SIGN, signer)


def attest(
    target: Target,
    subject: Manifest,
    name: str,
    predicate_type: str,
    predicate: Mapping[str, Any],
    signer: Signer,
    there: Known | None = None,
) -> None:
    """Say something about a manifest, signed. Held in `target.writing()`."""
    digest = subject.blob.digest
    said = statement.statement(digest, name, predicate_type, predicate)
    there = there or known(target, digest, signer.public)
    same = (one for one in there.attestations if one.predicate_type == predicate_type)
    forms = {one.form for one in same if one.predicate == predicate}
    if "tag" not in forms:
        data = canonical.dumps(statement.envelope(said, signer))
        notes = {SIGNATURE: "", "predicateType": predicate_type}
        _add_layer(target, digest, "att", File(statement.ENVELOPE, data, notes))
    if "bundle" not in forms:
        _attach_bundle(target, subject, said, predicate_type, signer)


def signatures(target: Target, digest: str, key: PublicKey) -> tuple[Verified, ...]:
    """The signatures of a manifest that this key made."""
    return known(target, digest, key).signatures


def attestations(
    target: Target, digest: str, key: PublicKey, predicate_type: str = ""
) -> tuple[Verified, ...]:
    """What was said about a manifest under this key, of one type or of all."""
    found = known(target, digest, key).attestations
    return tuple(one for one in found if predicate_type in ("", one.predicate_type))


def verify(target: Target, digest: str, key: PublicKey) -> tuple[Verified, ...]:
    """The same as `signatures`, of which there must be one. Raises InputError `unsigned`, `signed-by-another`."""
    found = signatures(target, digest, key)
    if found:
        return found
    where = f"{target.name}@{digest}"
    if _any(target, digest):
        what = f"{where} is signed, but not by the key {key.id}"
        raise InputError(what, reason="signed-by-another", hint="is it the right key?")
    raise InputError(f"{where} is not signed", reason="unsigned", hint="`kbuild sign REF --key KEY` signs it")


# -- the older form --------------------------------------------------------------------------------


def _simple(digest: str, name: str) -> bytes:
    """Red Hat's simple signing, as cosign writes it (its SIGNATURE_SPEC)."""
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": _CLAIM,
    }
    return canonical.dumps({"critical": critical, "optional": None})


def _simple_ones(target: Target, digest: str, key: PublicKey) -> Iterator[Verified]:
    for layer, data in _layers(target, tag_of(digest, "sig"), SIMPLE):
        signature = _decoded(layer.annotations.get(SIGNATURE, ""))
        if key.verifies(data, signature) and _claims(data, digest):
            yield Verified("tag", statement.SIGN, json.loads(data).get("optional"))


def _claims(data: bytes, digest: str) -> bool:
    """Whether this payload is about this manifest."""
    try:
        critical = json.loads(data)["critical"]
        return bool(critical["image"]["docker-manifest-digest"] == digest and critical["type"] == _CLAIM)
    except (ValueError, KeyError, TypeError):
        return False


def _envelopes(target: Target, digest: str, key: PublicKey) -> Iterator[Verified]:
    for _, data in _layers(target, tag_of(digest, "att"), statement.ENVELOPE):
        try:
            payload = statement.opened(json.loads(data), key)
        except (ValueError, TypeError):
            continue
        yield from _said("tag", payload, digest)


def _add_layer(target: Target, digest: str, suffix: str, file: File) -> None:
    """One more layer for the manifest under `sha256-HEX.SUFFIX`, which others' signatures stay in."""
    tag = tag_of(digest, suffix)
    old = _image(target, tag)
    kept = [_row(layer) for layer in old.layers] if old else []
    rows = [
        *kept,
        {"mediaType": file.media_type, **of_bytes(file.data).json(), "annotations": dict(file.annotations)},
    ]
    config = _config([row["digest"] for row in rows])
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": _CONFIG, **of_bytes(config).json()},
        "layers": rows,
    }
    package = small_package(tag, document, {of_bytes(data): data for data in (config, file.data)})
    referrers.put(target, package)
    target.put_manifest(package.manifest)
    target.tag({tag: package.manifest})


def _row(layer: Descriptor) -> dict[str, Any]:
    return {"mediaType": layer.media_type, **layer.blob.json(), "annotations": dict(layer.annotations)}


def _config(diff_ids: Sequence[str]) -> bytes:
    """The image configuration that cosign's manifests have."""
    return canonical.dumps(
        {
            "architecture": "",
            "os": "",
            "created": _ZERO,
            "config": {},
            "history": [{"created": _ZERO} for _ in diff_ids],
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
    )


def _layers(target: Target, tag: str, media_type: str) -> Iterator[tuple[Descriptor, bytes]]:
    image = _image(target, tag)
    if image is None:
        return
    for layer in image.layers:
        if layer.media_type == media_type:
            yield layer, read(target, layer.blob)


def _image(target: Target, tag: str) -> Image | None:
    try:
        return read_image(target.get_manifest(tag), f"{target.name}:{tag}")
    except HostError as problem:
        if problem.reason != "registry-not-found":
            raise
        return None


# -- the newer form --------------------------------------------------------------------------------


def _attach_bundle(
    target: Target, subject: Manifest, said: bytes, predicate_type: str, signer: Signer
) -> None:
    data = statement.bundle(statement.envelope(said, signer), signer.public)
    notes = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate_type,
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
    }
    word = f"bundle-{of_bytes(said).hex[:12]}-{signer.public.id}"
    referrer = Referrer(statement.BUNDLE, (File(statement.BUNDLE, data),), word, notes)
    referrers.attach(target, subject, [referrer])


def _bundles(target: Target, digest: str, key: PublicKey) -> Iterator[Verified]:
    for referrer in referrers.listed(target, digest, statement.BUNDLE):
        for _, data in referrers.files(target, referrer):
            try:
                payload = statement.unbundled(data, key)
            except (ValueError, TypeError):
                continue
            yield from _said("bundle", payload, digest)


def _said(form: str, payload: bytes | None, digest: str) -> Iterator[Verified]:
    """The statement in a payload whose signature held, when it is about this manifest."""
    if payload is None:
        return
    try:
        said = statement.read_statement(payload)
    except ValueError:
        return
    if digest.removeprefix("sha256:") in said.subjects:
        yield Verified(form, said.predicate_type, said.predicate)


def _any(target: Target, digest: str) -> bool:
    """Whether anyone signed it."""
    return _image(target, tag_of(digest, "sig")) is not None or bool(
        referrers.listed(target, digest, statement.BUNDLE)
    )


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""
