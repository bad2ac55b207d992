"""Reading tar headers from someone who may mean harm.

Understands what images are made of: V7, ustar, PAX (POSIX.1-2017) and the GNU long names and binary
numbers; refuses the rest by name. Unlike the standard library's reader, a bad header or an early end is
never taken for the end of the archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from kairosbuild.core.errors import InputError
from kairosbuild.oci.header import BLOCK, padding

_NUL_BLOCK = bytes(BLOCK)
_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold before it is refused. Sizes count bytes."""

    members: int = 2_000_000
    member: int = 64 << 30
    total: int = 256 << 30
    metadata: int = 1 << 20  # one PAX header or GNU long name
    xattr: int = 64 << 10  # one value; Linux's own limit
    depth: int = 256  # folders in a path


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Raw:
    """A member as its headers say, unchecked but for numbers: names are bytes, `flag` the type letter."""

    name: bytes
    flag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    major: int
    minor: int
    xattrs: tuple[tuple[str, bytes], ...]


def refuse(message: str, reason: str) -> InputError:
    """The error for an archive that is wrong."""
    return InputError(message, reason=reason)


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    """This many bytes, or `tar-truncated`."""
    parts, left = [], size
    while left:
        part = stream.read(left)
        if not part:
            raise refuse("the archive ends in the middle", "tar-truncated")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def next_member(stream: BinaryIO, shared: dict[str, bytes], limits: Limits) -> Raw | None:
    """The next member, its own and `shared` PAX records applied; None at the end mark."""
    own: dict[str, bytes] = {}
    name = link = None
    while True:
        block = read_exactly(stream, BLOCK)
        if block == _NUL_BLOCK:
            if own or name is not None or link is not None:
                raise refuse("the archive ends after a header that describes another", "tar-truncated")
            return None
        flag = _checked(block)
        if flag in b"xgXLK":
            text = _metadata(stream, block, limits)
            if flag in b"xX":
                own.update(_records(text))
            elif flag == b"g":
                shared.update(_global(_records(text)))
            elif flag == b"L":
                name = text.rstrip(b"\0")
            else:
                link = text.rstrip(b"\0")
            continue
        return _member(block, {**shared, **own}, name, link, limits)


def _checked(block: bytes) -> bytes:
    """The type letter of a header whose checksum holds; some old writers summed signed bytes."""
    said = _number(block[148:156], "checksum")
    blank = block[:148] + b" " * 8 + block[156:]
    total = sum(blank)
    if said not in (total, total - 256 * sum(byte > 127 for byte in blank)):
        raise refuse("a header's checksum does not hold", "tar-checksum")
    return block[156:157]


def _metadata(stream: BinaryIO, block: bytes, limits: Limits) -> bytes:
    size = _number(block[124:136], "size")
    if not 0 <= size <= limits.metadata:
        raise refuse(f"a header says that {size} bytes of metadata follow", "tar-limit")
    return read_exactly(stream, size + padding(size))[:size]


def _records(text: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    while text:
        digits, space, _ = text.partition(b" ")
        if not space or not digits.isdigit() or len(digits) > 8:
            raise refuse("a PAX record has no length", "tar-pax")
        length = int(digits)
        record = text[len(digits) + 1 : length]
        key, equals, value = record[:-1].partition(b"=")
        if length > len(text) or record[-1:] != b"\n" or not equals or not key:
            raise refuse("a PAX record is malformed", "tar-pax")
        records[key.decode("utf-8", "surrogateescape")] = value
        text = text[length:]
    return records


def _global(records: dict[str, bytes]) -> dict[str, bytes]:
    for key in ("path", "linkpath", "size"):
        if key in records:
            raise refuse(f"a global PAX header sets {key} for every member", "tar-pax")
    return records


def _member(
    block: bytes, records: Mapping[str, bytes], name: bytes | None, link: bytes | None, limits: Limits
) -> Raw:
    if any(key.startswith("GNU.sparse.") for key in records):
        raise refuse("the archive holds a sparse file", "tar-sparse")
    ustar = block[257:263] == b"ustar\0"
    old_name = _text(block[:100])
    if ustar and block[345:346] != b"\0":
        old_name = _text(block[345:500]) + b"/" + old_name
    flag = block[156:157]
    has_devices = block[257:262] == b"ustar" and flag in b"34"
    return Raw(
        name=records.get("path", old_name if name is None else name),
        flag=flag,
        mode=_number(block[100:108], "mode"),
        uid=_either(records, "uid", block[108:116]),
        gid=_either(records, "gid", block[116:124]),
        size=_either(records, "size", block[124:136]),
        mtime=_either(records, "mtime", block[136:148]),
        link=records.get("linkpath", _text(block[157:257]) if link is None else link),
        major=_number(block[329:337], "device") if has_devices else 0,
        minor=_number(block[337:345], "device") if has_devices else 0,
        xattrs=_xattrs(records, limits),
    )


def _xattrs(records: Mapping[str, bytes], limits: Limits) -> tuple[tuple[str, bytes], ...]:
    found = sorted((key[len(_XATTR) :], value) for key, value in records.items() if key.startswith(_XATTR))
    for key, value in found:
        if len(value) > limits.xattr or len(key) > 255 or not key:
            raise refuse(f"the extended attribute {key[:50]!r} is larger than Linux allows", "tar-limit")
    return tuple(found)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _either(records: Mapping[str, bytes], key: str, field: bytes) -> int:
    """A number from the PAX record, which may have a fraction, or else from the header."""
    if key not in records:
        return _number(field, key)
    whole, _, fraction = records[key].partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 20 or (fraction and not fraction.isdigit()):
        raise refuse(f"a PAX record says {key}={records[key][:40]!r}", "tar-number")
    return int(whole)


def _number(field: bytes, what: str) -> int:
    """Octal text, or GNU's big-endian binary with the top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = 8 * len(field)
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise refuse(f"a header has {field!r} for a {what}", "tar-number")
    return int(digits, 8) if digits else 0
