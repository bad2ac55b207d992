"""Signatures of distribution metadata: bytes go in, and only what a known key signed comes out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import HostError

DEBIAN = Path(__file__).with_name("debian-archive-keyring.pgp")
"""Debian's archive keys up to trixie, as debian-archive-keyring 2025.1 ships them."""


def signed_text(data: bytes, what: str, keyring: Path = DEBIAN) -> bytes:
    """The text that a key of the keyring signed in this cleartext-signed message (RFC 9580, section 7).

    Whatever else the message holds is not in the result: parse the result, never the message.
    `what` names the message in an error. Raises HostError (`bad-signature`).
    """
    import pysequoia

    def known(_: Sequence[str]) -> list[Any]:
        return _certificates(keyring.read_bytes())

    try:
        return bytes(pysequoia.verify(bytes=data, store=known).bytes or b"")
    except RuntimeError as error:
        raise HostError(
            f"{what} is not signed by a key of {keyring.name}: {str(error).partition(chr(10))[0]}",
            reason="bad-signature",
            hint="the mirror, or something on the way to it, serves what its distribution did not sign",
        ) from None


def signed_by(data: bytes, signatures: Sequence[bytes], what: str, certificates: Sequence[bytes]) -> None:
    """Refuse data that no key of these certificates made one of the detached signatures of.

    Certificates and signatures are armored or not. Raises HostError (`bad-signature`).
    """
    import pysequoia

    known = [cert for one in certificates for cert in pysequoia.Cert.split_bytes(one)]
    why = "no signature"
    for signature in signatures:
        try:
            pysequoia.verify(data, lambda _: known, signature=pysequoia.Sig.from_bytes(signature))
            return
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
    raise HostError(
        f"{what} is not signed by a key of its distribution: {why}",
        reason="bad-signature",
        hint="the mirror, or something on the way to it, serves what its distribution did not sign",
    )


@lru_cache
def _certificates(keyring: bytes) -> list[Any]:
    import pysequoia

    return list(pysequoia.Cert.split_bytes(keyring))
