"""What PCR 11 of a TPM comes to when a unified kernel image starts, and the policies that are signed over it.

As systemd-stub measures and systemd-measure computes: each section's name and content, then the phases of the boot.
<https://uapi-group.org/specifications/specs/linux_tpm_pcr_registry/>
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from kairosbuild.boot import uki

PCR = 11
_MEASURED = (
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey",
)  # fmt: skip
PHASES = (
    "", "sysinit", "sysinit:ready",
    "enter-initrd", "enter-initrd:leave-initrd", "enter-initrd:leave-initrd:sysinit",
    "enter-initrd:leave-initrd:sysinit:ready",
)  # fmt: skip
"""Points of a boot that a secret may be released at: our initrd measures none of its own, a systemd one does."""

_POLICY_PCR = 0x0000017F
_SHA256 = 0x000B


def value(image: bytes, phase: str = "") -> bytes:
    """PCR 11 at this point of the boot."""
    found = bytes(32)
    there = {one.name: one for one in uki.sections(image)}
    for name in _MEASURED:
        if one := there.get(name):
            content = image[one.offset : one.offset + min(one.size, one.stored)]
            found = _extended(found, name.encode() + b"\0")
            found = _extended(found, content + bytes(one.size - len(content)))
    for word in filter(None, phase.split(":")):
        found = _extended(found, word.encode())
    return found


def policy(pcr: bytes) -> bytes:
    """The digest of a policy that asks for this value: TPM2_PolicyPCR over SHA-256."""
    selection = struct.pack(">IHB3s", 1, _SHA256, 3, bytes([0, 1 << (PCR - 8), 0]))
    head = bytes(32) + struct.pack(">I", _POLICY_PCR)
    return hashlib.sha256(head + selection + hashlib.sha256(pcr).digest()).digest()


def policies(image: bytes, phases: Sequence[str] = PHASES) -> list[bytes]:
    """A policy for each point."""
    return [policy(value(image, phase)) for phase in phases]


def _extended(pcr: bytes, data: bytes) -> bytes:
    return hashlib.sha256(pcr + hashlib.sha256(data).digest()).digest()
