"""Kernel modules with symbols, as small as they can be."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from boot_samples import object_file

FLAGS = "SMP preempt mod_unload modversions"
SYMVERS = b"0x00000002\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n0x00000001\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n"


def driver(
    release: str = "6.12.9",
    flags: str = FLAGS,
    *,
    wants: Sequence[str] = ("kfree",),
    exports: Sequence[str] = (),
    versions: Mapping[str, int] | None = None,
    firmware: Sequence[str] = (),
    weak: Sequence[str] = (),
) -> bytes:
    """A module that wants these symbols, compiled against `versions` of them (of `SYMVERS`, if not given)."""
    versions = {"kfree": 1} if versions is None else versions
    said = [f"vermagic={release} {flags} ", "depends=", *(f"firmware={name}" for name in firmware)]
    exported = [f"__ksymtab_{name}" for name in exports]
    names = [*wants, *weak, *exported]
    strings, table = b"\0", bytes(24)
    for name in names:
        bind = 2 if name in weak else 1
        place = 1 if name in exported else 0
        table += struct.pack("<IBBHQQ", len(strings), bind << 4, 0, place, 0, 0)
        strings += name.encode() + b"\0"
    sections = {
        ".strtab": strings,
        ".symtab": table,
        ".modinfo": b"".join(line.encode() + b"\0" for line in said),
        "__versions": b"".join(struct.pack("<Q56s", crc, name.encode()) for name, crc in versions.items()),
    }
    return object_file(sections, link=1)
