"""Variables of OVMF's firmware, written into the file that holds them: what enrols keys for a test.

EDK II, MdeModulePkg/Include/Guid/VariableFormat.h: records in a row, each begun by 55 AA, the free rest all ones.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from kairosbuild.core.errors import KbuildError

_STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")  # authenticated variables
_ADDED = 0x3F
_HEADER = struct.Struct("<HBBIQ16sIII16s")
_STORE_HEADER = 28


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable; `stamp` is the EFI_TIME of one that is authenticated."""

    name: str
    vendor: uuid.UUID
    attributes: int
    content: bytes
    stamp: bytes = bytes(16)


def write(flash: bytes, variables: Sequence[Variable]) -> bytes:
    """The flash with these variables behind those it has. Raises `bad-firmware`."""
    begin = flash.find(_STORE.bytes_le)
    if begin < 0:
        raise KbuildError("this firmware has no store of authenticated variables", reason="bad-firmware")
    (size,) = struct.unpack_from("<I", flash, begin + 16)
    at, end = _free(flash, begin + _STORE_HEADER), begin + size
    made = bytearray(flash)
    for one in variables:
        record = _record(one)
        if at + len(record) > end:
            raise KbuildError("the firmware's store is too small for its keys", reason="bad-firmware")
        made[at : at + len(record)] = record
        at += -(-len(record) // 4) * 4
    return bytes(made)


def _free(flash: bytes, at: int) -> int:
    """Where the first free byte is."""
    while flash[at : at + 2] == b"\xaa\x55":
        _, _, _, _, _, _, _, name, data, _ = _HEADER.unpack_from(flash, at)
        at += -(-(_HEADER.size + name + data) // 4) * 4
    return at


def _record(one: Variable) -> bytes:
    name = one.name.encode("utf-16-le") + b"\0\0"
    head = _HEADER.pack(
        0x55AA, _ADDED, 0, one.attributes, 0, one.stamp, 0, len(name), len(one.content), one.vendor.bytes_le
    )
    return head + name + one.content
