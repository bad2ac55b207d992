"""The little that is needed of ELF: which libraries a program wants, what a kernel module says of itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kairosbuild.core.errors import KbuildError

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_DYN = struct.Struct("<qQ")
_SYM = struct.Struct("<IBBHQQ")
_NEEDED = 1
_WEAK = 2  # STB_WEAK


@dataclass(frozen=True, slots=True)
class _Section:
    name: bytes
    data: bytes
    link: int


def needed(image: bytes) -> list[str]:
    """The sonames this program or library is linked to; none for a static one."""
    found = _sections(image)
    for section in found:
        if section.name == b".dynamic":
            strings = found[section.link].data
            return [
                _text(strings, value).decode()
                for tag, value in _DYN.iter_unpack(section.data)
                if tag == _NEEDED
            ]
    return []


def interpreter(image: bytes) -> str:
    """The dynamic loader this program names, "" for a static one."""
    return next((s.data.rstrip(b"\0").decode() for s in _sections(image) if s.name == b".interp"), "")


def modinfo(image: bytes) -> list[tuple[str, str]]:
    """The key=value pairs of a kernel module's .modinfo section, in their order."""
    pairs = b"".join(s.data for s in _sections(image) if s.name == b".modinfo").split(b"\0")
    split = (pair.decode("utf-8", "replace").partition("=") for pair in pairs if pair)
    return [(key, value) for key, _, value in split]


def section(image: bytes, name: str) -> bytes:
    """The content of the first section of this name, empty when there is none."""
    return next((s.data for s in _sections(image) if s.name == name.encode()), b"")


def symbols(image: bytes) -> tuple[set[str], set[str]]:
    """The names an object wants from elsewhere (weak ones need not be there: left out), and those it has."""
    wanted: set[str] = set()
    has: set[str] = set()
    found = _sections(image)
    for one in found:
        if one.name != b".symtab":
            continue
        strings = found[one.link].data
        for name, info, _, place, _, _ in _SYM.iter_unpack(one.data[: len(one.data) // 24 * 24]):
            if place:
                has.add(_text(strings, name).decode("utf-8", "replace"))
            elif name and info >> 4 != _WEAK:
                wanted.add(_text(strings, name).decode("utf-8", "replace"))
    return wanted, has


def _sections(image: bytes) -> list[_Section]:
    if image[:6] != b"\x7fELF\x02\x01":
        raise KbuildError("not a 64-bit little-endian ELF file", reason="bad-elf")
    try:
        return _parse(image)
    except (struct.error, IndexError):
        raise KbuildError("the ELF file is cut short", reason="bad-elf") from None


def _parse(image: bytes) -> list[_Section]:
    header = _EHDR.unpack_from(image)
    table, size, count, names_at = header[6], header[11], header[12], header[13]
    raw = [_SHDR.unpack_from(image, table + number * size) for number in range(count)]
    names = image[raw[names_at][4] :][: raw[names_at][5]] if raw else b""
    return [_Section(_text(names, r[0]), image[r[4] : r[4] + r[5]] if r[1] != 8 else b"", r[6]) for r in raw]


def _text(strings: bytes, at: int) -> bytes:
    return strings[at : strings.index(b"\0", at)] if at < len(strings) else b""
