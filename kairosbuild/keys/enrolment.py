"""What firmware learns its keys from: signature lists (.esl), and the same signed for its variables (.auth).

UEFI specification 2.10, chapters 8.2.2 and 32.4.1.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from datetime import datetime

from kairosbuild.keys import cms
from kairosbuild.keys.certificate import Certificate
from kairosbuild.keys.keys import Signer

NAMES = ("PK", "KEK", "db")
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
VENDOR = {"PK": GLOBAL, "KEK": GLOBAL, "db": SECURITY}
ATTRIBUTES = 0x27  # non-volatile, boot and runtime access, authenticated by time
_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")


def signature_list(certificates: Sequence[Certificate], owner: uuid.UUID) -> bytes:
    """An EFI_SIGNATURE_LIST for each certificate."""
    found = []
    for one in certificates:
        size = 16 + len(one.der)
        head = struct.pack("<16sIII", _X509.bytes_le, 28 + size, 0, size)
        found.append(head + owner.bytes_le + one.der)
    return b"".join(found)


def authenticated(name: str, content: bytes, at: datetime, certificate: Certificate, signer: Signer) -> bytes:
    """The value of a variable with the signature that lets firmware take it."""
    stamp = time(at)
    said = name.encode("utf-16-le") + VENDOR[name].bytes_le + struct.pack("<I", ATTRIBUTES) + stamp + content
    signature = cms.bare(said, certificate, signer)
    head = struct.pack("<IHH16s", 24 + len(signature), 0x0200, 0x0EF1, _PKCS7.bytes_le)
    return stamp + head + signature + content


def time(at: datetime) -> bytes:
    """EFI_TIME with no more than the seconds."""
    return struct.pack("<HBBBBBxIhBx", at.year, at.month, at.day, at.hour, at.minute, at.second, 0, 0, 0)
