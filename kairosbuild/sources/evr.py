"""The order of RPM versions: epoch, version and release, each by segments (rpm-version(7))."""

from __future__ import annotations

import re
from functools import cmp_to_key, lru_cache

Evr = tuple[str, str, str]
"""Epoch ("" and "0" are the same), version, release."""

_SEGMENT = re.compile(r"~|\^|\d+|[A-Za-z]+")


def compare(a: Evr, b: Evr) -> int:
    """Less than, equal to or greater than zero as `a` is older than, the same as or newer than `b`."""
    first = int(a[0] or 0) - int(b[0] or 0)
    return first or compare_part(a[1], b[1]) or compare_part(a[2], b[2])


newest_last = lru_cache(4096)(cmp_to_key(compare))
"""A sort key: `max(versions, key=newest_last)` is the newest."""


def compare_part(a: str, b: str) -> int:
    """The order of two versions, or of two releases. What separates segments counts for nothing."""
    left, right = _SEGMENT.findall(a), _SEGMENT.findall(b)
    for one, other in zip(left, right, strict=False):
        if one != other and (result := _compare_segment(one, other)):
            return result
    if len(left) == len(right):
        return 0
    longer, rest = (1, left[len(right)]) if len(left) > len(right) else (-1, right[len(left)])
    return -longer if rest == "~" else longer


def _compare_segment(one: str, other: str) -> int:
    """A tilde before everything, the end included; a caret behind the end, before anything else."""
    for mark in ("~", "^"):
        if mark in (one, other):
            return -1 if one == mark else 1
    if one.isdigit() != other.isdigit():
        return 1 if one.isdigit() else -1
    if one.isdigit():
        return (int(one) > int(other)) - (int(one) < int(other))
    return (one > other) - (one < other)
