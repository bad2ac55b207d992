"""Digests and the blobs they name. sha256 everywhere, because OCI and the Remote Execution API speak it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Blob:
    """Some bytes by what they are: `digest` is `sha256:` and 64 hex digits, `size` counts bytes."""

    digest: str
    size: int

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest[7:]

    def json(self) -> dict[str, str | int]:
        """The form this takes in records and documents."""
        return {"digest": self.digest, "size": self.size}


def is_digest(text: object) -> bool:
    """Whether this is a well-formed sha256 digest."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def of_bytes(data: bytes) -> Blob:
    """The blob these bytes are."""
    return Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))


def of_stream(stream: BinaryIO) -> Blob:
    """The blob that the rest of this stream is."""
    sha, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        sha.update(chunk)
        size += len(chunk)
    return Blob("sha256:" + sha.hexdigest(), size)


def of_file(path: Path) -> Blob:
    """The blob that this file's content is."""
    with path.open("rb") as stream:
        return of_stream(stream)
