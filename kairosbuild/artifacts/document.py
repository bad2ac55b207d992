"""The document of an artifact: its type and its files, which a registry's manifest is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob

_TYPE = "application/vnd.kairosbuild"


@dataclass(frozen=True, slots=True)
class File:
    """A file of an artifact: what it is called, what it is (`disk.raw`, `uki`, …), its bytes."""

    title: str
    what: str
    blob: Blob


def document(what: str, files: Sequence[File], annotations: Mapping[str, str] | None = None) -> bytes:
    """The document of an artifact of this type (`disk`, `iso`, …)."""
    return dumps(
        {
            "schema": 1,
            "artifactType": f"{_TYPE}.{what}.v1",
            "files": [
                {**one.blob.json(), "title": one.title, "mediaType": f"{_TYPE}.{one.what}"} for one in files
            ],
            "annotations": dict(annotations or {}),
        }
    )
