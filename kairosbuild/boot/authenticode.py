"""What of a PE image a signature covers, and where it is put.

Microsoft, "Windows Authenticode Portable Executable Signature Format"; PE format, "The Attribute Certificate Table".
"""

from __future__ import annotations

import hashlib
import struct

from kairosbuild.boot.uki import Pe, sections
from kairosbuild.core.errors import KbuildError

_ALIGN = 8


def padded(image: bytes) -> bytes:
    """The image as it is signed: whole words. Raises `already-signed`."""
    if any(Pe(image).certificates):
        raise KbuildError("the image is signed already", reason="already-signed")
    return image + bytes(-len(image) % _ALIGN)


def digest(image: bytes) -> bytes:
    """SHA-256 over all but the checksum and what belongs to the signature itself; `image` is padded."""
    pe = Pe(image)
    checksum, directory = pe.optional + 64, pe.optional + 112 + 8 * 4
    found = hashlib.sha256(image[:checksum])
    found.update(image[checksum + 4 : directory])
    found.update(image[directory + 8 : pe.headers])
    at = pe.headers
    for one in sorted((one for one in sections(image) if one.stored), key=lambda one: one.offset):
        found.update(image[one.offset : one.offset + one.stored])
        at += one.stored
    found.update(image[at:])
    return found.digest()


def attach(image: bytes, signature: bytes) -> bytes:
    """The padded image with this PKCS#7 signature in its certificate table."""
    pe = Pe(image)
    table = struct.pack("<IHH", 8 + len(signature), 0x0200, 0x0002) + signature
    table += bytes(-len(table) % _ALIGN)
    made = bytearray(image + table)
    struct.pack_into("<II", made, pe.optional + 112 + 8 * 4, len(image), len(table))
    return bytes(made)
