"""Signatures of kernel modules: a CMS document behind the object, then twelve bytes about it, then a mark.

The form is that of the kernel's own scripts/sign-file (linux/module_signature.h). RSA as modules use it
is deterministic: the same module and key give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

MARK = b"~Module signature appended~\n"
_TRAILER = struct.Struct(">BBBBB3xI")  # algo, hash, id_type, signer_len, key_id_len, sig_len
_PKCS7 = 2  # PKEY_ID_PKCS7


def signed(image: bytes) -> bool:
    """Whether a module carries a signature, of whomever."""
    return image.endswith(MARK)


def without(image: bytes) -> bytes:
    """The module without its signature."""
    while image.endswith(MARK):
        body = image[: -len(MARK)]
        size = _TRAILER.unpack_from(body, len(body) - _TRAILER.size)[-1]
        image = body[: len(body) - _TRAILER.size - size]
    return image


def sign(image: bytes, make: Callable[[bytes], bytes]) -> bytes:
    """The module with the signature that `make` makes of it (detached CMS, DER), in place of any it had."""
    plain = without(image)
    cms = make(plain)
    return plain + cms + _TRAILER.pack(0, 0, _PKCS7, 0, 0, len(cms)) + MARK


def cms_of(image: bytes) -> bytes:
    """The signature of a signed module."""
    body = image[: -len(MARK)]
    size = _TRAILER.unpack_from(body, len(body) - _TRAILER.size)[-1]
    return body[: -_TRAILER.size][-size:]
