"""Certificates: read, made, and held against the key that is to sign in their name."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from kairosbuild.core.errors import HostError, InputError
from kairosbuild.keys.keys import TOKEN, PublicKey, Signer, signer

BITS = 2048  # what firmware everywhere takes for Secure Boot

_WRONG = ("certificate-bad", "key-bad", "key-mismatch", "key-unsupported")


@dataclass(frozen=True, slots=True)
class Certificate:
    """An X.509 certificate as signatures name it: DER, issuer (DER) and serial number."""

    der: bytes
    issuer: bytes
    serial: int
    subject: str
    rsa: bool
    fingerprint: str
    public: PublicKey

    def signer(self, reference: str, what: str) -> Signer:
        """The key to sign with. Raises InputError `key-mismatch` when it is not this certificate's."""
        found = signer(reference)
        if found.public.pem() != self.public.pem():
            raise InputError(
                f"{what}: the key {reference} is not that of the certificate {self.subject!r}",
                reason="key-mismatch",
                hint="name the key that `kbuild keys new` made beside the certificate",
            )
        if not self.rsa:
            raise InputError(
                f"{what}: firmware and kernels take signatures of RSA keys only",
                reason="key-unsupported",
                hint="`kbuild keys new` makes such",
            )
        return found


def certificate(pem: bytes, what: str) -> Certificate:
    """Read one. Raises InputError `certificate-bad`."""
    try:
        found = x509.load_pem_x509_certificate(pem)
        public = found.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{what} is no certificate",
            reason="certificate-bad",
            hint="a PEM that begins with BEGIN CERTIFICATE",
        ) from None
    return Certificate(
        der=found.public_bytes(serialization.Encoding.DER),
        issuer=found.issuer.public_bytes(),
        serial=found.serial_number,
        subject=found.subject.rfc4514_string(),
        rsa=isinstance(public, rsa.RSAPublicKey),
        fingerprint=found.fingerprint(hashes.SHA256()).hex(),
        public=PublicKey(public),
    )


def key_at(reference: str, root: Path) -> str:
    """A reference to a key as it is looked up: a file's path is relative to the workspace at `root`."""
    if "://" in reference or reference.startswith((TOKEN, "/")):
        return reference
    return str(root / reference)


def mismatch(place: Path, reference: str, what: str) -> InputError | None:
    """That `place` has no certificate, or a key at hand is not that of it."""
    return told_now(lambda: _pair(place, reference, what))


def _pair(place: Path, reference: str, what: str) -> None:
    found = certificate(place.read_bytes(), f"{what}: {place.name}")
    if reference and not reference.startswith(TOKEN):
        found.signer(reference, what)


def told_now(look: Callable[[], object]) -> InputError | None:
    """What is wrong with keys at hand. Nothing is said of those on tokens, or of those that are not there: whoever
    finds what is signed in a cache needs none."""
    try:
        look()
    except InputError as problem:
        return problem if problem.reason in _WRONG else None
    except (HostError, OSError):
        return None
    return None


def new_key() -> bytes:
    """A private key, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def self_signed(key_pem: bytes, name: str, *, start: datetime.datetime, years: int) -> bytes:
    """A certificate of this key for itself, as PEM: firmware takes it for what it is, and follows no chain."""
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, rsa.RSAPrivateKey), "new_key made it"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * years))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
