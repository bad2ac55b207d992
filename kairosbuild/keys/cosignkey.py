"""cosign's encrypted private keys: scrypt and NaCl's secretbox around PKCS#8, as JSON in a PEM."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from kairosbuild.core.errors import InputError
from kairosbuild.keys.keys import PASSWORD

_MOST_MEMORY = 256 << 20  # bytes that a key may want to be opened with; cosign's want 64 MiB
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s(.*?)-----END \1-----", re.DOTALL)


def unsealed(data: bytes, password: bytes, reference: str) -> bytes:
    """The PKCS#8 in such a key. Raises InputError `key-bad`; nothing of the key is in its message."""
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    try:
        sealed = _read(data)
        box = SecretBox(_derived(sealed["kdf"], password))
        opened = box.decrypt(_bytes(sealed["ciphertext"]), _bytes(sealed["cipher"]["nonce"]))
    except CryptoError:
        raise _bad(reference, "cannot be opened with this password", f"it is taken from {PASSWORD}") from None
    except (ValueError, KeyError, TypeError):
        raise _bad(reference, "is damaged, or encrypted in a way that is not known here") from None
    return bytes(opened)


def _read(data: bytes) -> Any:
    match = _PEM.search(data)
    sealed = json.loads(base64.b64decode(match[2]) if match else b"")
    if sealed["kdf"]["name"] != "scrypt" or sealed["cipher"]["name"] != "nacl/secretbox":
        raise ValueError("another way")
    return sealed


def _derived(kdf: Any, password: bytes) -> bytes:
    n, r, p = (int(kdf["params"][name]) for name in ("N", "r", "p"))
    salt = _bytes(kdf["salt"])
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=_MOST_MEMORY, dklen=32)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _bad(reference: str, why: str, hint: str = "") -> InputError:
    return InputError(f"the key {reference} {why}", reason="key-bad", hint=hint)
