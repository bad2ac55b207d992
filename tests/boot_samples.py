"""The smallest kernel modules, programs and PE images there are, for tests of the boot chain."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping

from kairosbuild.boot import fat, gpt, uki
from kairosbuild.boot.sparse import Sparse


def module(*, depends: str = "", softdep: str = "", aliases: tuple[str, ...] = ()) -> bytes:
    """A kernel module with nothing but what it says of itself."""
    said = [
        f"depends={depends}",
        *([f"softdep={softdep}"] if softdep else []),
        *(f"alias={a}" for a in aliases),
    ]
    return object_file({".modinfo": b"".join(line.encode() + b"\0" for line in said)})


def object_file(sections: dict[str, bytes], link: int = 0) -> bytes:
    """An ELF file of these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in sections) + b".shstrtab\0"
    everything = {"": b"", **sections, ".shstrtab": names}
    offset, body, headers = 64, b"", b""
    for name, content in everything.items():
        at = names.index(name.encode() + b"\0") if name else 0
        kind = 0 if not name else 1
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, offset + len(body), len(content), link, 0, 1, 0)
        body += content
    count = len(everything)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        1,
        62,
        1,
        0,
        0,
        offset + len(body),
        0,
        64,
        0,
        0,
        64,
        count,
        count - 1,
    )
    return head + body + headers


def stub(sections: int = 2, room: int = 0x400) -> bytes:
    """The smallest PE32+ image there is, with sections of one block each."""
    head = bytearray(room)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x40)
    struct.pack_into("<4sHHIIIHH", head, 0x40, b"PE\0\0", 0x8664, sections, 0, 0, 0, 240, 0x2022)
    optional = 0x40 + 24
    struct.pack_into("<H", head, optional, 0x20B)
    struct.pack_into("<II", head, optional + 32, 0x1000, 0x200)
    struct.pack_into("<IIIHH", head, optional + 56, 0x1000 * (sections + 1), room, 0xABCD, 10, 0x100)
    struct.pack_into("<I", head, optional + 108, 16)
    for number in range(sections):
        at = optional + 240 + 40 * number
        name = f".s{number}".encode()
        place = room + 0x200 * number
        struct.pack_into(
            "<8sIIII12xI", head, at, name, 0x200, 0x1000 * (number + 1), 0x200, place, 0x60000020
        )
    return bytes(head) + b"\xcc" * 0x200 * sections


def kernel_image(cmdline: str) -> bytes:
    """A unified kernel image of a few clusters."""
    kernel = b"k" * 300_000
    return uki.assemble(stub(), os_release=b"ID=x\n", cmdline=cmdline, uname="6", initrd=b"i", kernel=kernel)


def disk(files: Mapping[str, bytes], sector: int = 512) -> Sparse:
    """A disk whose second partition is an EFI system partition with these files."""
    start, size = 2 << 20, 320 << 20
    found = Sparse(start + size + (1 << 20))
    parts = [
        gpt.Partition(gpt.LAYERS, uuid.UUID(int=1), "layers", 1 << 20, 1 << 20),
        gpt.Partition(gpt.ESP, uuid.UUID(int=2), "esp", start, size),
    ]
    found.add_all(0, gpt.build(found.size, uuid.UUID(int=3), parts, sector))
    found.add_all(start, fat.build(fat.Volume(size, "ESP", 1, sector=sector), files))
    return found
