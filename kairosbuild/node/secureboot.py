"""What firmware that enforces Secure Boot would not start is refused while there is still something to refuse it.

Not a verification: that is the firmware's. An image that it refuses leaves many a machine standing at the firmware's
menu, where no boot loader counts tries; so whether one of the firmware's own certificates can have signed it is asked before.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path

from kairosbuild.node.problem import Problem

VARIABLES = Path("/sys/firmware/efi/efivars")
_ENFORCED = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_DB = "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f"
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_LIST = struct.Struct("<16sIII")
_SECURITY = 4  # index of the signatures among a PE image's data directories
_SEQUENCE, _VERSION = 0x30, 0xA0
_VALIDITY = b"[\x1e\x20\x22]"
"""The length of two dates: what follows an issuer's name. Behind a subject's there is a public key, behind a signer's a number."""


def refuse_unstartable(image: Path, variables: Path = VARIABLES) -> None:
    """Raise Problem `not-startable` for an image that this machine's firmware cannot start as it is set up."""
    if not enforced(variables):
        return
    known = list(_entries((variables / _DB).read_bytes()[4:]))
    if any(kind != _X509 for kind, _ in known):  # single images by their hash: the firmware will know
        return
    signatures = _signatures(image.read_bytes())
    if not signatures:
        why, hint = "it is not signed", "sign the boot node with the key of this machine's db"
    elif any(_may_have_signed(one, signatures) for _, one in known):
        return
    else:
        why, hint = (
            "no certificate in its db has signed it",
            "sign it with a key of db, or enrol its certificate",
        )
    raise Problem(
        f"the firmware of this machine would not start it: {why}", reason="not-startable", hint=hint
    )


def enforced(variables: Path = VARIABLES) -> bool:
    """Whether the firmware starts only what is signed."""
    try:
        return (variables / _ENFORCED).read_bytes()[-1:] == b"\1"
    except OSError:
        return False


def _entries(lists: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of everything in a variable of signature lists (UEFI 2.10, chapter 32.4.1)."""
    at = 0
    while at + _LIST.size <= len(lists):
        kind, size, header, each = _LIST.unpack_from(lists, at)
        if size < _LIST.size or each <= 16:
            return
        for entry in range(at + _LIST.size + header, at + size - each + 1, each):
            yield kind, lists[entry + 16 : entry + each]
        at += size


def _signatures(image: bytes) -> bytes:
    """The certificate table of a PE image, b"" when it has none."""
    start = struct.unpack_from("<I", image, 0x3C)[0] + 24
    at, size = struct.unpack_from("<II", image, start + 112 + 8 * _SECURITY)
    return image[at : at + size]


def _may_have_signed(certificate: bytes, signatures: bytes) -> bool:
    """Whether this certificate is among them or issued one of them; another one of its name is not it."""
    name = re.escape(_subject(certificate))
    issued = re.search(name + b"\x30" + _VALIDITY, signatures, re.DOTALL)
    another = re.search(name + b"\x30(?!" + _VALIDITY + b")", signatures, re.DOTALL)
    return certificate in signatures or bool(issued and not another)


def _subject(certificate: bytes) -> bytes:
    """The subject's name as it stands in a certificate, and in the ones that it issued: the sixth field, or the fifth."""
    _, at, _ = _element(certificate, 0)
    _, at, _ = _element(certificate, at)
    kind, _, end = _element(certificate, at)
    at = end if kind == _VERSION else at
    for _ in range(4):  # serial number, algorithm, issuer, validity
        _, _, at = _element(certificate, at)
    kind, _, end = _element(certificate, at)
    return certificate[at:end] if kind == _SEQUENCE else certificate


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, beginning and end of the content of a DER element."""
    first = data[at + 1]
    more = first & 0x7F if first & 0x80 else 0
    length = int.from_bytes(data[at + 2 : at + 2 + more], "big") if more else first
    return data[at], at + 2 + more, at + 2 + more + length
