"""Signatures on what firmware starts: a field of each artifact, that names a certificate and where its key is.

The certificate is in the artifact's key, the private key in none: signatures are deterministic, so the same
unsigned bytes and the same certificate make the same artifact, and whoever has it in a cache needs no key. All
that costs time (boot forms, initrd) is made before, by work that knows of no key either.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.artifacts.checks import locked_out_of
from kairosbuild.boot import authenticode, pcr, uki
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.graph.node import Task
from kairosbuild.keys.der import octets, oid, sequence, tagged
from kairosbuild.recipe.fields import choice, source, text

# What signs is loaded when there is something to sign: that costs more than laying out a disk.
if TYPE_CHECKING:
    from kairosbuild.keys.certificate import Certificate
    from kairosbuild.keys.keys import Signer

ROLE = "sign"
_INDIRECT, _PE = "1.3.6.1.4.1.311.2.1.4", "1.3.6.1.4.1.311.2.1.15"
_SHA256 = sequence(oid("2.16.840.1.101.3.4.2.1"), tagged(0x05, b""))


@dataclass(frozen=True, slots=True)
class SignSpec:
    """Signatures that firmware and TPM hold a boot to."""

    certificate: str = source("The certificate (PEM) that firmware has in its db.")
    key: str = text(
        "Its private key, when there is something to sign: a file, `env://NAME` or `pkcs11:…`. In no key of a "
        "node, no log and no layer.",
        "",
        hint=True,
    )
    pcr_public: str = source("The public key (PEM) that a TPM's policies name; signs PCR 11 too.", "")
    pcr_key: str = text("Its private key, as `key`.", "", hint=True)
    enrol: str = source(
        "A folder with PK.auth, KEK.auth and db.auth, put on the EFI partition for systemd-boot to enrol.", ""
    )
    enrolment: str = choice(
        "When systemd-boot enrols them on a machine in setup mode: `if-safe` in virtual machines, `force` "
        "everywhere, `manual` when chosen from its menu.",
        ("if-safe", "force", "manual"),
        "if-safe",
    )


class Signing:
    """What signs an artifact. Made first of all, so that a wrong key is told before anything is built."""

    def __init__(self, task: Task, spec: SignSpec) -> None:
        self.spec = spec
        self._task = task
        self.certificate, self._signer = signs_as(task, spec.certificate, spec.key)
        self._pcr = self._pcr_signer() if spec.pcr_public else None

    def pe(self, image: bytes) -> bytes:
        """A PE image with its signature. Raises `already-signed`."""
        from kairosbuild.keys import cms

        made = authenticode.padded(image)
        empty = sequence(tagged(0x03, b"\0"), tagged(0xA0, tagged(0xA2, tagged(0x80, b""))))
        said = sequence(sequence(oid(_PE), empty), sequence(_SHA256, octets(authenticode.digest(made))))
        return authenticode.attach(made, cms.signed(_INDIRECT, said, self.certificate, self._signer))

    def unified(self, image: bytes) -> bytes:
        """A unified kernel image with the policies of its PCR and its signature."""
        if self._pcr:
            public = self._pcr.public.pem()
            image = uki.extended(image, {".pcrpkey": public})
            image = uki.extended(image, {".pcrsig": policies(image, self._pcr)})
        return self.pe(image)

    @cached_property
    def enrolled(self) -> Mapping[str, bytes]:
        """Files of an EFI partition that systemd-boot enrols, and what it is told. Raises `enrol-missing`."""
        if not self.spec.enrol:
            return {}
        from kairosbuild.keys.enrolment import NAMES

        role = f"{ROLE}.enrol"
        there = {one.logical for one in self._task.sources[role]}
        if problem := _unenrolled(self._task.name, self.spec.enrol, there):
            raise problem
        return {
            f"loader/keys/auto/{name}.auth": self._task.source_path(role, f"{name}.auth").read_bytes()
            for name in NAMES
        }

    def _source(self, name: str) -> bytes:
        return self._task.source_path(f"{ROLE}.{name}", "").read_bytes()

    def _pcr_signer(self) -> Signer:
        reference = _reference(self._task, self.spec.certificate, self.spec.pcr_key, "pcr_key")
        return _of_pcr(self._task.name, reference, self._source("pcr_public"), self.spec.pcr_public)


def _of_pcr(name: str, reference: str, public: bytes, called: str) -> Signer:
    """The PCR key, which is that of its public half. Raises InputError (`key-mismatch`, …)."""
    from kairosbuild.keys.keys import public_key, signer

    said, found = public_key(public, called).pem(), signer(reference)
    if found.public.pem() != said:
        raise InputError(
            f"{name}: the PCR key {reference} is not that of {called}",
            reason="key-mismatch",
            hint="pcr.key and public/pcr.pub, as `kbuild keys new` made them",
        )
    return found


def signing(task: Task) -> Signing | None:
    """What signs this artifact, if the recipe says so; refused when modules of its image would not load for it."""
    spec: SignSpec | None = task.spec.sign
    if not spec:
        return None
    raise_problems([problem for image in _images(task) for problem in locked_out_of(task.name, image)])
    return Signing(task, spec)


def _images(task: Task) -> Iterator[Mapping[str, Any]]:
    """The documents of all images that it starts, be they there themselves or by a node of kind boot."""
    for one in (one for given in task.inputs.values() for one in given):
        if document := one.outputs.get("image") or one.outputs.get("of"):
            yield loads(task.path(document).read_bytes())


def signs_as(task: Task, named: str, key: str) -> tuple[Certificate, Signer]:
    """The certificate of the role `sign.certificate`, called so, and what signs for it.

    Raises `key-missing`, `key-mismatch`.
    """
    from kairosbuild.keys.certificate import certificate

    found = certificate(task.source_path(f"{ROLE}.certificate", "").read_bytes(), named)
    return found, found.signer(_reference(task, named, key, "key"), task.name)


def _reference(task: Task, named: str, said: str, field: str) -> str:
    """Where a key is; a file's path is relative to the workspace, as the certificate's is."""
    if not said:
        raise InputError(
            f"{task.name} is to be signed, and no key is named",
            reason="key-missing",
            hint=f"sign: {{{field}: …}}, or a cache that has the signed artifact",
        )
    from kairosbuild.keys.certificate import key_at

    at = str(task.source_path(f"{ROLE}.certificate", ""))
    return key_at(said, Path(at.removesuffix(named)))


def key_complaints(name: str, spec: Any, root: Path) -> Iterator[KbuildError]:
    """A key at hand that is not its certificate's, a folder that enrols nothing: told before anything runs."""
    sign: SignSpec | None = spec.sign
    if not sign:
        return
    from kairosbuild.keys.certificate import key_at, mismatch, told_now
    from kairosbuild.keys.enrolment import NAMES
    from kairosbuild.keys.keys import TOKEN

    if problem := mismatch(root / sign.certificate, sign.key and key_at(sign.key, root), name):
        yield problem
    if sign.pcr_public and sign.pcr_key and not sign.pcr_key.startswith(TOKEN):
        at, public = key_at(sign.pcr_key, root), root / sign.pcr_public
        if problem := told_now(lambda: _of_pcr(name, at, public.read_bytes(), sign.pcr_public)):
            yield problem
    there = {f"{one}.auth" for one in NAMES if (root / sign.enrol / f"{one}.auth").exists()}
    if sign.enrol and (problem := _unenrolled(name, sign.enrol, there)):
        yield problem


def _unenrolled(name: str, folder: str, there: Collection[str]) -> InputError | None:
    from kairosbuild.keys.enrolment import NAMES

    if missing := [one for one in NAMES if f"{one}.auth" not in there]:
        return InputError(
            f"{name}: {folder} has no {missing[0]}.auth",
            reason="enrol-missing",
            hint="name the folder `public` that `kbuild keys new` made",
        )
    return None


def policies(image: bytes, key: Signer) -> bytes:
    """The section `.pcrsig`: a signed policy for each point of the boot."""
    rows: list[Any] = []
    for wanted in pcr.policies(image):
        row = {
            "pcrs": [pcr.PCR],
            "pkfp": key.public.fingerprint,
            "pol": wanted.hex(),
            "sig": base64.b64encode(key.sign(wanted)).decode(),
        }
        if row not in rows:
            rows.append(row)
    return dumps({"sha256": rows})
