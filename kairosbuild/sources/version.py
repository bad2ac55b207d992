"""The order of Debian versions: deb-version(7), "Sorting algorithm"."""

from __future__ import annotations

import re
from functools import cmp_to_key, lru_cache

_PARTS = re.compile(r"(\D*)(\d*)")


def compare(a: str, b: str) -> int:
    """Less than, equal to or greater than zero as `a` is older than, the same as or newer than `b`."""
    for left, right in zip(_split(a), _split(b), strict=True):
        result = _compare_part(left, right)
        if result:
            return result
    return 0


newest_last = lru_cache(4096)(cmp_to_key(compare))
"""A sort key: `max(versions, key=newest_last)` is the newest."""


def _split(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if dash else (epoch, rest, "0")


def _compare_part(a: str, b: str) -> int:
    left, right = _PARTS.findall(a), _PARTS.findall(b)
    length = max(len(left), len(right))
    for one, other in zip(_padded(left, length), _padded(right, length), strict=True):
        mine = ([_weight(c) for c in one[0]] + [0], int(one[1] or 0))
        theirs = ([_weight(c) for c in other[0]] + [0], int(other[1] or 0))
        if mine != theirs:
            return -1 if mine < theirs else 1
    return 0


def _padded(parts: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    return parts + [("", "")] * (length - len(parts))


def _weight(character: str) -> int:
    """A tilde before the end, the end (0) before letters, letters before the rest."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
