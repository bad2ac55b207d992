"""A unified kernel image: systemd-stub with kernel, initrd and command line as PE sections behind it.

What `ukify build` does, without a signature, as struct packing: a boot entry then costs what it takes to
copy its bytes. <https://uapi-group.org/specifications/specs/unified_kernel_image/>
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.boot.cpio import Buffer
from kairosbuild.core.errors import KbuildError

SBAT = b"uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/\n"
"""What a revocation names a unified kernel image by, beside the stub's own line."""

CMDLINE_MAX = 2047  # x86 kernels: COMMAND_LINE_SIZE 2048 with its NUL
_HEADER = struct.Struct("<8sIIIIIIHHI")  # a section header
_CODE, _DATA, _READ, _NX_COMPAT = 0x20, 0x40, 0x40000000, 0x0100
_SECURITY = 4  # index of the certificate table among the data directories


@dataclass(frozen=True, slots=True)
class Section:
    """One section: name and virtual address (both of the running image), size, place in the file."""

    name: str
    address: int
    size: int
    offset: int
    stored: int


def assemble(
    stub: bytes, *, os_release: bytes, cmdline: str, uname: str, initrd: bytes, kernel: bytes
) -> bytes:
    """The image. Raises `bad-stub` for a stub this cannot be done to and `cmdline-too-long`."""
    return b"".join(
        parts(stub, os_release=os_release, cmdline=cmdline, uname=uname, initrd=(initrd,), kernel=(kernel,))
    )


def parts(
    stub: bytes,
    *,
    os_release: bytes,
    cmdline: str,
    uname: str,
    initrd: Sequence[Buffer],
    kernel: Sequence[Buffer],
) -> list[Buffer]:
    """The same in pieces, initrd and kernel as they were given: what is large is copied only when it is written."""
    if len(cmdline.encode()) > CMDLINE_MAX:
        raise KbuildError(
            f"the kernel command line has {len(cmdline.encode())} bytes, {CMDLINE_MAX} fit",
            reason="cmdline-too-long",
            hint="fewer layers, or shorter arguments",
        )
    named = (
        (".osrel", (os_release,)),
        (".cmdline", (cmdline.encode(),)),
        (".uname", (uname.encode(),)),
        (".initrd", initrd),
        (".linux", kernel),
    )
    return _append(_with_sbat(stub), named)


def extended(image: bytes, more: Mapping[str, bytes]) -> bytes:
    """An image with more sections behind those it has. Raises `bad-stub`."""
    return b"".join(_append(image, [(name, (content,)) for name, content in more.items()]))


def _with_sbat(stub: bytes) -> bytes:
    """The stub whose `.sbat` names the unified image beside the stub, where it has one with room for a line."""
    for number, one in enumerate(sections(stub)):
        if one.name == ".sbat" and SBAT not in stub:
            text = stub[one.offset : one.offset + min(one.size, one.stored)].rstrip(b"\0") + SBAT
            if len(text) > one.stored:
                raise KbuildError("the stub's .sbat has no room for a line", reason="bad-stub")
            made = bytearray(stub)
            made[one.offset : one.offset + len(text)] = text
            struct.pack_into("<I", made, Pe(stub).table + number * _HEADER.size + 8, len(text))
            return bytes(made)
    return stub


def sections(image: bytes) -> list[Section]:
    """The sections of a PE image, in order."""
    pe = Pe(image)
    found = []
    for number in range(pe.count):
        name, size, address, stored, offset, *_ = _HEADER.unpack_from(image, pe.table + number * _HEADER.size)
        found.append(Section(name.rstrip(b"\0").decode("ascii", "replace"), address, size, offset, stored))
    return found


def section(image: bytes, name: str) -> bytes:
    """The content of the section of this name; KeyError when there is none."""
    for one in sections(image):
        if one.name == name:
            return image[one.offset : one.offset + min(one.size, one.stored)]
    raise KeyError(name)


class Pe:
    """Where things are in the headers of a PE32+ image."""

    def __init__(self, image: bytes) -> None:
        self.start = (
            struct.unpack_from("<I", image, 0x3C)[0] if image[:2] == b"MZ" and len(image) > 0x40 else 0
        )
        self.optional = self.start + 24
        if (
            image[self.start : self.start + 4] != b"PE\0\0"
            or image[self.optional : self.optional + 2] != b"\x0b\x02"
        ):
            raise KbuildError("not a 64-bit PE image", reason="bad-stub")
        self.count, size = struct.unpack_from("<H12xH", image, self.start + 6)
        self.table = self.optional + size
        self.section_alignment, self.file_alignment = struct.unpack_from("<II", image, self.optional + 32)
        self.headers = struct.unpack_from("<I", image, self.optional + 60)[0]
        self.characteristics = struct.unpack_from("<H", image, self.optional + 70)[0]
        self.certificates = struct.unpack_from("<II", image, self.optional + 112 + 8 * _SECURITY)


def _append(stub: bytes, named: Sequence[tuple[str, Sequence[Buffer]]]) -> list[Buffer]:
    pe, known = Pe(stub), sections(stub)
    _refuse(stub, pe, known, len(named))
    address, length = max(one.address + one.size for one in known), len(stub)
    found: list[Buffer] = []
    headers = []
    for name, content in named:
        size = sum(map(len, content))
        offset, address = _up(length, pe.file_alignment), _up(address, pe.section_alignment)
        stored = _up(size, pe.file_alignment)
        flags = _READ | (_CODE if name == ".linux" else _DATA)
        headers.append(_HEADER.pack(name.encode(), size, address, stored, offset, 0, 0, 0, 0, flags))
        found += [bytes(offset - length), *content, bytes(stored - size)]
        length, address = offset + stored, address + size
    head = _patched(stub[: pe.headers], pe, b"".join(headers), address, dict(named))
    return [head, stub[pe.headers :], *found]


def _refuse(stub: bytes, pe: Pe, known: Sequence[Section], more: int) -> None:
    first = min(one.offset for one in known if one.stored)
    if pe.table + (pe.count + more) * _HEADER.size > min(pe.headers, first):
        raise KbuildError("the stub's header has no room for more sections", reason="bad-stub")
    if any(pe.certificates):
        raise KbuildError("the stub is signed; sign the assembled image instead", reason="bad-stub")
    if max(one.offset + one.stored for one in known) > len(stub):
        raise KbuildError("the stub is cut short", reason="bad-stub")


def _patched(head: bytes, pe: Pe, headers: bytes, end: int, named: Mapping[str, Sequence[Buffer]]) -> bytes:
    """The stub's headers with the new sections entered and the sums of the whole made right."""
    out = bytearray(head)
    at = pe.table + pe.count * _HEADER.size
    out[at : at + len(headers)] = headers
    struct.pack_into("<H", out, pe.start + 6, pe.count + len(named))
    initialised = struct.unpack_from("<I", out, pe.optional + 8)[0]
    added = sum(len(one) for content in named.values() for one in content)
    struct.pack_into("<I", out, pe.optional + 8, initialised + added)
    struct.pack_into("<I", out, pe.optional + 56, _up(end, pe.section_alignment))  # SizeOfImage
    struct.pack_into("<I", out, pe.optional + 64, 0)  # CheckSum
    if ".linux" in named and not _nx_compatible(
        bytes(named[".linux"][0][:65536])
    ):  # stub and kernel must agree, or strict firmware refuses them
        struct.pack_into("<H", out, pe.optional + 70, pe.characteristics & ~_NX_COMPAT)
    return bytes(out)


def _nx_compatible(kernel: bytes) -> bool:
    try:
        return bool(Pe(kernel).characteristics & _NX_COMPAT)
    except (KbuildError, struct.error):
        return False


def _up(number: int, to: int) -> int:
    return number + -number % to
