"""Signed cache records: a key file says who made a result, another whom to believe.

Ed25519 or ECDSA over P-256, as PEM (the same files that `cosign` and `openssl` make, unencrypted). What is
signed is the record's bytes behind a domain tag, so that no other signature of that key can be passed off as
one of these. The signature travels in an annotation of the record's manifest.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import InputError

SIGNATURE = "dev.kairosbuild.record.signature"
_DOMAIN = b"kairosbuild.record.v1\n"


class Signer:
    """A private key. Raises InputError `bad-key`."""

    def __init__(self, file: Path) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self._key = _usable(file, _load(file, lambda data: load_pem_private_key(data, None)))

    def sign(self, body: bytes) -> Mapping[str, str]:
        """The annotation that vouches for these bytes."""
        signature = self._key.sign(_DOMAIN + body, *_scheme(self._key))
        return {SIGNATURE: base64.b64encode(signature).decode()}


class Trust:
    """Public keys. A record counts when one of them has signed it. Raises InputError `bad-key`."""

    def __init__(self, files: Iterable[Path]) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self._keys = [_usable(file, _load(file, load_pem_public_key)) for file in files]

    def accepts(self, body: bytes, annotations: Mapping[str, str]) -> bool:
        """Whether one of the keys has signed these bytes."""
        try:
            signature = base64.b64decode(annotations.get(SIGNATURE, ""), validate=True)
        except ValueError:
            return False
        return any(_verifies(key, signature, _DOMAIN + body) for key in self._keys)


def _verifies(key: Any, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, data, *_scheme(key))
    except InvalidSignature:
        return False
    return True


def _scheme(key: Any) -> tuple[Any, ...]:
    """What `sign` and `verify` take besides: Ed25519 hashes by itself."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    elliptic = isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey)
    return (ec.ECDSA(hashes.SHA256()),) if elliptic else ()


def _load(file: Path, read: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read(file.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise _bad(
            file, str(getattr(problem, "strerror", "") or "it is no key in PEM, or it is encrypted")
        ) from problem


def _usable(file: Path, key: Any) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    curves = ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey
    if isinstance(key, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, curves) and key.curve.name == "secp256r1":
        return key
    raise _bad(file, "it is neither Ed25519 nor ECDSA over P-256")


def _bad(file: Path, why: str) -> InputError:
    return InputError(f"the key {file} cannot be used: {why}", reason="bad-key")
