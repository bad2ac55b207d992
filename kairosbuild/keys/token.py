"""A key on a token: PKCS#11, named by a URI of RFC 7512. The private key never comes here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from kairosbuild.core.errors import HostError, InputError
from kairosbuild.keys.keys import PublicKey

PIN = "COSIGN_PKCS11_PIN"
MODULE = "COSIGN_PKCS11_MODULE_PATH"


class TokenKey:
    """A key to sign with, on a token that this process has logged in to."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._mechanisms = _library()
        said = _parse(reference)
        session = _session(said, reference)
        self._private = self._find(session, said, "PRIVATE_KEY")
        self.public = PublicKey(self._load_public(self._find(session, said, "PUBLIC_KEY")))

    def sign(self, data: bytes) -> bytes:
        """ECDSA signs the digest, and its two numbers are put as X.509 wants them."""
        from pkcs11.util.ec import encode_ecdsa_signature

        mechanism = self._mechanisms.Mechanism
        try:
            if self._private.key_type == self._mechanisms.KeyType.EC:
                raw = self._private.sign(hashlib.sha256(data).digest(), mechanism=mechanism.ECDSA)
                return bytes(encode_ecdsa_signature(raw))
            return bytes(self._private.sign(data, mechanism=mechanism.SHA256_RSA_PKCS))
        except self._mechanisms.exceptions.PKCS11Error as problem:
            raise _failed(self._reference, f"does not sign: {type(problem).__name__}") from None

    def _find(self, session: Any, said: dict[str, str], kind: str) -> Any:
        attribute = self._mechanisms.Attribute
        wanted: dict[Any, Any] = {attribute.CLASS: self._mechanisms.ObjectClass[kind]}
        if "object" in said:
            wanted[attribute.LABEL] = unquote(said["object"])
        if "id" in said:
            wanted[attribute.ID] = unquote_to_bytes(said["id"])
        found = list(session.get_objects(wanted))
        if len(found) != 1:
            what = kind.lower().replace("_", " ")
            raise _failed(self._reference, f"names {len(found) or 'no'} {what}s", "say object= or id=")
        return found[0]

    def _load_public(self, found: Any) -> Any:
        from cryptography.hazmat.primitives.serialization import load_der_public_key
        from pkcs11.util.ec import encode_ec_public_key
        from pkcs11.util.rsa import encode_rsa_public_key

        elliptic = found.key_type == self._mechanisms.KeyType.EC
        return load_der_public_key((encode_ec_public_key if elliptic else encode_rsa_public_key)(found))


def _library() -> Any:
    try:
        import pkcs11
    except ImportError:
        raise HostError(
            "keys on a token need the package python-pkcs11",
            reason="token-library",
            hint="pip install 'kairosbuild[pkcs11]'",
        ) from None
    return pkcs11


def _parse(reference: str) -> dict[str, str]:
    """The attributes of the URI, of its path and of its query. Raises InputError `key-bad`."""
    path, _, query = reference.removeprefix("pkcs11:").partition("?")
    words = [*path.split(";"), *query.split("&")]
    said = dict(word.partition("=")[::2] for word in words if word)
    if "pin-value" in said:
        why = "a PIN on a command line or in a recipe is no secret"
        raise InputError(why, reason="key-bad", hint=f"put it into {PIN}, or say pin-source=FILE")
    if not {"token", "slot-id"} & set(said) or not {"object", "id"} & set(said):
        raise InputError(
            f"{reference} names no one key", reason="key-bad", hint="pkcs11:token=TOKEN;object=LABEL"
        )
    return said


def _session(said: dict[str, str], reference: str) -> Any:
    library = _library()
    module = unquote(said.get("module-path", "")) or os.environ.get(MODULE, "")
    if not module:
        raise _failed(reference, "names no module", f"?module-path=/…/libsofthsm2.so, or {MODULE}")
    try:
        token = _token(library.lib(module), said, reference)
        try:
            return token.open(user_pin=_pin(said, reference))
        except library.exceptions.UserAlreadyLoggedIn:  # a process logs in once for all its sessions
            return token.open()
    except library.exceptions.PinIncorrect:
        raise _failed(reference, "refuses the PIN") from None
    except (library.exceptions.PKCS11Error, RuntimeError) as problem:
        raise _failed(reference, f"cannot be used: {type(problem).__name__}") from None


def _token(module: Any, said: dict[str, str], reference: str) -> Any:
    for slot in module.get_slots(token_present=True):
        token = slot.get_token()
        right_slot = said.get("slot-id", str(slot.slot_id)) == str(slot.slot_id)
        if right_slot and unquote(said.get("token", token.label)) == token.label:
            return token
    raise _failed(reference, "names a token that is not there")


def _pin(said: dict[str, str], reference: str) -> str:
    if PIN in os.environ:
        return os.environ[PIN]
    source = unquote(said.get("pin-source", "")).removeprefix("file:")
    if not source:
        raise _failed(reference, "wants a PIN", f"put it into {PIN}, or say pin-source=FILE")
    try:
        return Path(source).read_text().strip()
    except OSError as problem:
        raise _failed(reference, f"its pin-source cannot be read: {problem.strerror}") from None


def _failed(reference: str, why: str, hint: str = "") -> HostError:
    return HostError(f"{reference} {why}", reason="token-failed", hint=hint)
