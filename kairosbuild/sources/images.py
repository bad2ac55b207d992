"""Images of registries: what a reference comes to for a platform, as files with digests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kairosbuild.core.digest import Blob, of_file
from kairosbuild.core.errors import InputError
from kairosbuild.sources.debian import Fetch

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image for one platform: its manifest's digest, its configuration, its layers bottom to top.

    `place` is what a blob's uri is made of: `f"{place}@{digest}"`.
    """

    place: str
    manifest: str
    config: Blob
    layers: tuple[Blob, ...]


def resolve(image: str, platform: str, fetch: Fetch) -> Resolved:
    """Look a reference up. Raises InputError (`base-image`, `base-platform`) and what a fetch does."""
    scheme, rest = ("oci-layout:", image.removeprefix("oci-layout:"))
    if rest == image:
        scheme, rest = "oci://", image
    place = scheme + without_version(rest)
    path = fetch(scheme + rest)
    blob, document = of_file(path), _document(path, image)
    if document.get("mediaType") in _INDEXES or "manifests" in document:
        blob = _for_platform(document, platform, image)
        document = _document(fetch(f"{place}@{blob.digest}", digest=blob.digest, size=blob.size), image)
    layers = tuple(Blob(layer["digest"], layer["size"]) for layer in document.get("layers", ()))
    config = document.get("config")
    if not layers or not config:
        raise InputError(f"{image} is no image: its manifest lists no layers", reason="base-image")
    return Resolved(place, blob.digest, Blob(config["digest"], config["size"]), layers)


def without_version(reference: str) -> str:
    """A reference without its tag and digest; a port is no tag."""
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def _document(path: Path, image: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InputError(f"{image} has no manifest that can be read", reason="base-image")
    return document


def _for_platform(index: Mapping[str, Any], platform: str, image: str) -> Blob:
    have = []
    for manifest in index.get("manifests", ()):
        about = manifest.get("platform") or {}
        name = f"{about.get('os')}/{about.get('architecture')}"
        have.append(name)
        if name == "/".join(platform.split("/")[:2]):
            return Blob(manifest["digest"], manifest["size"])
    raise InputError(
        f"{image} has nothing for {platform}",
        reason="base-platform",
        hint="it has " + ", ".join(sorted(have)),
    )
