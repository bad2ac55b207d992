"""PKCS#7 SignedData as PE images, UEFI variables and kernel modules carry it. RFC 2315, RFC 5652.

By hand rather than by a library, because the key may be on a token, and because equal input has to make equal bytes:
RSA PKCS#1 v1.5 is deterministic, and no signing time is put in. So what is signed can be built again by whoever
has the key, and found in a cache by whoever has not.
"""

from __future__ import annotations

import hashlib

from kairosbuild.keys.certificate import Certificate
from kairosbuild.keys.der import NULL, integer, octets, oid, sequence, set_of, tagged
from kairosbuild.keys.keys import Signer

DATA = "1.2.840.113549.1.7.1"
_SIGNED = "1.2.840.113549.1.7.2"
_CONTENT_TYPE, _MESSAGE_DIGEST = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4"
_SHA256 = sequence(oid("2.16.840.1.101.3.4.2.1"), NULL)
_RSA = sequence(oid("1.2.840.113549.1.1.1"), NULL)


def detached(data: bytes, certificate: Certificate, signer: Signer, *, enclose: bool = True) -> bytes:
    """A signature of bytes that are elsewhere, as ContentInfo; with `enclose` the certificate is in it."""
    return _enclosed(_signed_data(sequence(oid(DATA)), certificate, signer.sign(data), enclose=enclose))


def bare(data: bytes, certificate: Certificate, signer: Signer) -> bytes:
    """The same without its ContentInfo, as UEFI's authenticated variables want it."""
    return _signed_data(sequence(oid(DATA)), certificate, signer.sign(data))


def signed(content_type: str, content: bytes, certificate: Certificate, signer: Signer) -> bytes:
    """A signature with its content (a SEQUENCE) inside, and attributes that name both, as Authenticode has it."""
    inner = content[2 if content[1] < 0x80 else 2 + (content[1] & 0x7F) :]
    attributes = [
        sequence(oid(_CONTENT_TYPE), set_of([oid(content_type)])),
        sequence(oid(_MESSAGE_DIGEST), set_of([octets(hashlib.sha256(inner).digest())])),
    ]
    signature = signer.sign(set_of(attributes))
    about = sequence(oid(content_type), tagged(0xA0, content))
    return _enclosed(_signed_data(about, certificate, signature, attributes=b"".join(sorted(attributes))))


def _signed_data(
    about: bytes, certificate: Certificate, signature: bytes, *, attributes: bytes = b"", enclose: bool = True
) -> bytes:
    who = sequence(certificate.issuer, integer(certificate.serial))
    added = tagged(0xA0, attributes) if attributes else b""
    signer = sequence(integer(1), who, _SHA256, added, _RSA, octets(signature))
    certificates = tagged(0xA0, certificate.der) if enclose else b""
    return sequence(integer(1), set_of([_SHA256]), about, certificates, set_of([signer]))


def _enclosed(signed_data: bytes) -> bytes:
    return sequence(oid(_SIGNED), tagged(0xA0, signed_data))
