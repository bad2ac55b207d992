"""Keys to sign and verify with: a file, a variable of the environment, or a token (PKCS#11).

    cosign.key             cosign's encrypted key, or a PEM (PKCS#8, SEC 1, PKCS#1), encrypted or not
    env://NAME             the same, as the value of a variable
    pkcs11:token=T;…       a key that never leaves its token (RFC 7512)

ECDSA on P-256, Ed25519 and RSA, all with SHA-256, as cosign has them. ECDSA is deterministic (RFC 6979)
where the key is at hand: who signs the same again sends nothing. A key's text, a password and a PIN are in
no message, no event and no file; a PIN on a command line is refused, since others can read that.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from kairosbuild.core.errors import HostError, InputError

PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 (the variable's name, which cosign reads too)
ENVIRONMENT = "env://"
TOKEN = "pkcs11:"  # noqa: S105 (a scheme)
_SEALED = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")
_LEAST_RSA = 2048


class Signer(Protocol):
    """Something that signs, and what verifies it."""

    public: PublicKey

    def sign(self, data: bytes) -> bytes:
        """The signature of these bytes."""


class PublicKey:
    """A key that verifies."""

    def __init__(self, key: Any) -> None:
        _check(key)
        self._key = key

    @property
    def hint(self) -> str:
        """How a bundle names the key: base64 of the SHA-256 of its DER form, as cosign has it."""
        return base64.b64encode(hashlib.sha256(self._der()).digest()).decode()

    @property
    def id(self) -> str:
        """A short name for people and tags."""
        return hashlib.sha256(self._der()).hexdigest()[:12]

    @property
    def fingerprint(self) -> str:
        """How systemd names an RSA key: SHA-256 of its PKCS#1 form."""
        if not isinstance(self._key, rsa.RSAPublicKey):
            raise InputError(
                "a TPM's policies are signed by RSA keys",
                reason="key-unsupported",
                hint="`kbuild keys new` makes one",
            )
        form = serialization.PublicFormat.PKCS1
        return hashlib.sha256(self._key.public_bytes(serialization.Encoding.DER, form)).hexdigest()

    def pem(self) -> bytes:
        """Its PEM form."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return bytes(self._key.public_bytes(serialization.Encoding.PEM, form))

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Whether this is the key's signature of these bytes."""
        key = self._key
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def _der(self) -> bytes:
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return bytes(self._key.public_bytes(serialization.Encoding.DER, form))


class PrivateKey:
    """A key in memory that signs."""

    def __init__(self, key: Any) -> None:
        self.public = PublicKey(key.public_key())
        self._key = key

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id})"

    def sign(self, data: bytes) -> bytes:
        """Deterministic whatever the key's kind."""
        key = self._key
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return bytes(key.sign(data))


def signer(reference: str) -> Signer:
    """The key to sign with. Raises InputError (`key-…`) and HostError (`key-unreadable`, `token-…`)."""
    if reference.startswith(TOKEN):
        from kairosbuild.keys.token import TokenKey

        return TokenKey(reference)
    data = _text(reference)
    if b"PRIVATE KEY" not in data:
        raise _bad(reference, "holds no private key", "a public key verifies; sign with the private one")
    return PrivateKey(_private(data, reference))


def verifier(reference: str) -> PublicKey:
    """The key to verify with; of a private key its public half."""
    if reference.startswith(TOKEN):
        return signer(reference).public
    data = _text(reference)
    if b"PRIVATE KEY" in data:
        return PrivateKey(_private(data, reference)).public
    return public_key(data, reference)


def public_key(pem: bytes, what: str) -> PublicKey:
    """A public key out of its PEM form. Raises InputError `key-bad`."""
    try:
        return PublicKey(serialization.load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm):
        raise _bad(what, "is no public key", "a PEM that begins with BEGIN PUBLIC KEY") from None


def _text(reference: str) -> bytes:
    if reference.startswith(ENVIRONMENT):
        name = reference.removeprefix(ENVIRONMENT)
        if not os.environ.get(name):
            raise HostError(
                f"the variable {name}, which should hold a key, is not set", reason="key-unreadable"
            )
        return os.environ[name].encode()
    if "://" in reference:
        raise _bad(reference, "is no key that is known here", "a file, env://NAME or pkcs11:…")
    try:
        return Path(reference).read_bytes()
    except OSError as problem:
        sort = InputError if isinstance(problem, FileNotFoundError) else HostError
        raise sort(f"the key {reference}: {problem.strerror}", reason="key-unreadable") from None


def _private(data: bytes, reference: str) -> Any:
    if any(label in data for label in _SEALED):
        from kairosbuild.keys.cosignkey import unsealed

        der = unsealed(data, _password(reference), reference)
        return _loaded(lambda: serialization.load_der_private_key(der, None), reference)
    encrypted = b"ENCRYPTED" in data
    password = _password(reference) if encrypted else None
    return _loaded(lambda: serialization.load_pem_private_key(data, password), reference, encrypted)


def _loaded(load: Any, reference: str, encrypted: bool = False) -> Any:
    """What `load` gives. Messages of the library are not repeated: they may quote what they read."""
    try:
        key = load()
        _check(key.public_key())
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        why = "cannot be read with this password" if encrypted else "is no private key that can be read"
        raise _bad(reference, why, f"the password is taken from {PASSWORD}" if encrypted else "") from None
    return key


def _password(reference: str) -> bytes:
    """From the environment, or asked for where somebody sits before a terminal."""
    if PASSWORD in os.environ:
        return os.environ[PASSWORD].encode()
    if sys.stdin.isatty() and sys.stderr.isatty():
        import getpass

        return getpass.getpass(f"password of {reference}: ", sys.stderr).encode()
    raise HostError(
        f"the key {reference} is encrypted", reason="key-password", hint=f"put its password into {PASSWORD}"
    )


def _check(key: Any) -> None:
    """Raises InputError `key-unsupported` for a key that cosign and we would not agree on."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        found = f"ECDSA on {key.curve.name}" if key.curve.name != "secp256r1" else ""
    elif isinstance(key, rsa.RSAPublicKey):
        found = f"RSA of {key.key_size} bits" if key.key_size < _LEAST_RSA else ""
    else:
        found = "" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__
    if found:
        raise InputError(
            f"a key of this kind is not used here: {found}",
            reason="key-unsupported",
            hint="ECDSA on P-256, Ed25519, or RSA of 2048 bits and more",
        )


def _bad(reference: str, why: str, hint: str = "") -> InputError:
    return InputError(f"the key {reference} {why}", reason="key-bad", hint=hint)
