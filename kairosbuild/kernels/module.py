"""One kernel module as it describes itself: what it was compiled for, what it wants, what it offers."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import zstandard

from kairosbuild.boot import elf
from kairosbuild.boot.modules import canonical, expand, name_of
from kairosbuild.core.errors import InputError, KbuildError

_VERSION = struct.Struct("<Q56s")  # struct modversion_info of linux/module.h
_KSYMTAB = "__ksymtab_"
_BROKEN = (KbuildError, ValueError, OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class Module:
    """A module. `versions` are the checksums of the symbols it was compiled against, if it has any."""

    name: str
    image: bytes
    release: str
    """The kernel's release out of its vermagic, and in `flags` the rest of it."""
    flags: str
    wants: frozenset[str]
    exports: frozenset[str]
    versions: Mapping[str, int]
    depends: tuple[str, ...]
    firmware: tuple[str, ...]


def read(path: str, data: bytes) -> Module:
    """The module in this file, packed or not. Raises InputError (`not-a-module`)."""
    name = name_of(path)
    try:
        image = expand(path, data)
        info = elf.modinfo(image)
        wants, has = elf.symbols(image)
    except _BROKEN as error:
        raise InputError(f"{path} is no kernel module: {error}", reason="not-a-module") from None
    magic = next((value for key, value in info if key == "vermagic"), "")
    if name is None or not magic:
        raise InputError(f"{path} is no kernel module: it has no vermagic", reason="not-a-module")
    release, _, flags = magic.partition(" ")
    return Module(
        name,
        image,
        release,
        flags.strip(),
        frozenset(wants),
        frozenset(symbol.removeprefix(_KSYMTAB) for symbol in has if symbol.startswith(_KSYMTAB)),
        _versions(image),
        tuple(canonical(n) for key, value in info if key == "depends" for n in value.split(",") if n),
        firmware_of(info),
    )


def firmware_of(info: list[tuple[str, str]]) -> tuple[str, ...]:
    """The firmware files that a .modinfo asks for, each once."""
    return tuple(dict.fromkeys(value for key, value in info if key == "firmware"))


def _versions(image: bytes) -> dict[str, int]:
    """Symbol → checksum, out of either form that kernels have."""
    plain = elf.section(image, "__versions")
    found = {
        name.rstrip(b"\0").decode("utf-8", "replace"): crc & 0xFFFFFFFF
        for crc, name in _VERSION.iter_unpack(plain[: len(plain) // _VERSION.size * _VERSION.size])
    }
    crcs = elf.section(image, "__version_ext_crcs")
    names = elf.section(image, "__version_ext_names").split(b"\0")
    for (crc,), name in zip(struct.iter_unpack("<I", crcs[: len(crcs) // 4 * 4]), names, strict=False):
        found[name.decode("utf-8", "replace")] = crc
    return found
