"""A record: what an action yielded, as bytes that prove to be what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob, is_digest

SCHEMA = 1
_SUM = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Record:
    """The result of an action under its key.

    `preimage` is the JSON document that was hashed into `key`; `outputs` are blobs by name; `seconds`
    is how long it took (kept to the microsecond); `log` is what it printed; `name` is for people.
    """

    key: str
    preimage: Any
    outputs: Mapping[str, Blob]
    seconds: float = field(default=0.0, compare=False)
    log: Blob | None = field(default=None, compare=False)
    name: str = field(default="", compare=False)


def dumps(record: Record) -> bytes:
    """The record as it is stored: sha256 of the document, then the document in canonical JSON."""
    return sealed(body(record))


def body(record: Record) -> bytes:
    """The record as canonical JSON: what is shared, where a digest vouches for it already."""
    return canonical.dumps(
        {
            "schema": SCHEMA,
            "key": record.key,
            "name": record.name,
            "preimage": record.preimage,
            "outputs": {name: blob.json() for name, blob in record.outputs.items()},
            "microseconds": round(record.seconds * 1_000_000),
            "log": record.log.json() if record.log else None,
        }
    )


def loads(key: str, data: object) -> Record | None:
    """The record these bytes are, or None when they are damaged, of another schema or of another key."""
    return read(key, document(data))


def read(key: str, found: Any) -> Record | None:
    """The record this document is, or None when it is of another schema or of another key."""
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("key") != key:
        return None
    try:
        return Record(
            key=key,
            preimage=found["preimage"],
            outputs={name: _blob(value) for name, value in found["outputs"].items()},
            seconds=found["microseconds"] / 1_000_000,
            log=_blob(found["log"]) if found["log"] else None,
            name=found["name"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def sealed(body: bytes) -> bytes:
    """A checksum, then the bytes: a flipped bit anywhere shows."""
    return hashlib.sha256(body).digest() + body


def document(data: object) -> Any:
    """The JSON document behind its checksum, or None."""
    if not isinstance(data, bytes) or hashlib.sha256(data[_SUM:]).digest() != data[:_SUM]:
        return None
    try:
        return json.loads(data[_SUM:].decode())
    except ValueError:
        return None


def _blob(value: Mapping[str, Any]) -> Blob:
    digest, size = value["digest"], value["size"]
    if not is_digest(digest) or not isinstance(size, int) or size < 0:
        raise ValueError("not a blob")
    return Blob(digest, size)
