"""The little of DER that signatures are made of. ITU-T X.690."""

from __future__ import annotations

from collections.abc import Iterable


def tagged(tag: int, content: bytes) -> bytes:
    """A value with its tag and length."""
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE."""
    return tagged(0x30, b"".join(parts))


def set_of(parts: Iterable[bytes]) -> bytes:
    """SET OF, in the order DER wants."""
    return tagged(0x31, b"".join(sorted(parts)))


def integer(number: int) -> bytes:
    """INTEGER, not negative."""
    return tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def octets(data: bytes) -> bytes:
    """OCTET STRING."""
    return tagged(0x04, data)


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    return tagged(0x06, b"".join(map(_base128, (first * 40 + second, *rest))))


NULL = tagged(0x05, b"")


def _base128(number: int) -> bytes:
    found = [number & 0x7F]
    while number := number >> 7:
        found.append(0x80 | number & 0x7F)
    return bytes(reversed(found))
