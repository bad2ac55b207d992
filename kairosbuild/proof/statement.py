"""in-toto statements, and the envelopes (DSSE) and bundles (Sigstore v0.3) that carry them signed.

<https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>,
<https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>,
<https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kairosbuild.core import canonical

if TYPE_CHECKING:
    from kairosbuild.keys.keys import PublicKey, Signer

STATEMENT = "https://in-toto.io/Statement/v1"
STATEMENTS = (STATEMENT, "https://in-toto.io/Statement/v0.1")  # cosign still writes the older one
IN_TOTO = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"

SIGN = "https://sigstore.dev/cosign/sign/v1"
SLSA = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
SPDX = "https://spdx.dev/Document"
CYCLONEDX = "https://cyclonedx.org/bom"
PREDICATES = {
    "slsaprovenance1": SLSA,
    "spdxjson": SPDX,
    "cyclonedx": CYCLONEDX,
    "test-result": TEST_RESULT,
}
"""Short names as cosign has them, and one of ours."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What is said (`predicate`) about digests (sha256, in hex), as it was read."""

    predicate_type: str
    subjects: tuple[str, ...]
    predicate: Any


def statement(digest: str, name: str, predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """The bytes of a statement about one manifest."""
    subject: dict[str, Any] = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    if name:
        subject["name"] = name
    document = {
        "_type": STATEMENT,
        "subject": [subject],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(
        document, sort_keys=True, separators=(",", ":")
    ).encode()  # others' predicates have floats


def read_statement(data: bytes) -> Statement:
    """Raises ValueError for what is none."""
    document = json.loads(data)
    try:
        if document["_type"] not in STATEMENTS:
            raise ValueError("a statement of another version")
        subjects = tuple(str(one["digest"]["sha256"]) for one in document["subject"])
        return Statement(str(document["predicateType"]), subjects, document.get("predicate"))
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"no statement: {problem}") from None


def envelope(payload: bytes, signer: Signer) -> dict[str, Any]:
    """These bytes and their signature."""
    signature = signer.sign(_encoded(IN_TOTO, payload))
    return {
        "payload": b64encode(payload).decode(),
        "payloadType": IN_TOTO,
        "signatures": [{"keyid": "", "sig": b64encode(signature).decode()}],
    }


def opened(document: Any, key: PublicKey) -> bytes | None:
    """The payload of an envelope that this key signed; None when it did not. ValueError for no envelope."""
    try:
        payload_type, payload = str(document["payloadType"]), b64decode(document["payload"], validate=True)
        signatures = [b64decode(one["sig"], validate=True) for one in document["signatures"]]
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"no envelope: {problem}") from None
    signed = _encoded(payload_type, payload)
    right = payload_type == IN_TOTO and any(key.verifies(signed, one) for one in signatures)
    return payload if right else None


def bundle(sealed: Mapping[str, Any], key: PublicKey) -> bytes:
    """An envelope as a Sigstore bundle: nothing of a transparency log, the key named by its hash."""
    signatures = [{"sig": one["sig"]} for one in sealed["signatures"]]
    return canonical.dumps(
        {
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": key.hint}},
            "dsseEnvelope": {**sealed, "signatures": signatures},
        }
    )


def unbundled(data: bytes, key: PublicKey) -> bytes | None:
    """The payload of a bundle that this key signed, or None. Raises ValueError for what is no such bundle."""
    document = json.loads(data)
    if not isinstance(document, dict) or not str(document.get("mediaType")).startswith(
        "application/vnd.dev.sigstore.bundle"
    ):
        raise ValueError("no bundle")
    return opened(document["dsseEnvelope"], key) if "dsseEnvelope" in document else None


def _encoded(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
