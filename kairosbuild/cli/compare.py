"""Where two files first differ, and what that place is in a layer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from kairosbuild.core.digest import CHUNK

if TYPE_CHECKING:
    from pathlib import Path


def offset(one: Path, other: Path) -> int | None:
    """The first byte at which two files differ, or None when they are equal."""
    at = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(CHUNK), right.read(CHUNK)
            if a != b:
                shared = min(len(a), len(b))
                return at + next((i for i in range(shared) if a[i] != b[i]), shared)
            if not a:
                return None
            at += len(a)


def path_at(index: bytes, at: int) -> str:
    """The path of a layer whose header or content lies at this byte of its tar, in words."""
    from kairosbuild.oci.index import Index

    places = list(Index.loads(index))
    for place, after in pairwise([*places, None]):
        assert place is not None
        if after is None or at < after.offset:
            part = (
                "its owner, mode, time or size" if at < place.data else f"its content, byte {at - place.data}"
            )
            return f"/{place.entry.path} ({part})"
    return "an empty layer"
