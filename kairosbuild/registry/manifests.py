"""Reading manifests and indexes that strangers wrote: checked field by field, nothing believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kairosbuild.core.digest import Blob, is_digest
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry.target import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Manifest,
    Target,
)

_MOST_BLOBS = 10_000
_NESTING = 3


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest taken apart: an OCI image, or an artifact when `artifact_type` is set."""

    manifest: Manifest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""

    @property
    def digest(self) -> str:
        """The manifest's digest: what a lock pins."""
        return self.manifest.blob.digest

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Config and layers."""
        return (self.config.blob, *(layer.blob for layer in self.layers))


def resolve(target: Target, version: str, platform: str) -> Image:
    """The image that a tag or digest means for a platform (`linux/amd64`), by way of an index or not.

    Raises InputError `no-such-platform`, HostError `bad-manifest`, and what the target raises.
    """
    for _ in range(_NESTING):
        manifest = target.get_manifest(version)
        where = f"{target.name}@{manifest.blob.digest}"
        if not is_index(manifest):
            return read_image(manifest, where)
        version = _choose(_load(manifest), platform, where)
    raise _bad(where, "indexes within indexes")


def read_image(manifest: Manifest, where: str) -> Image:
    """Take a manifest apart. `where` names it in errors."""
    document = _load(manifest)
    media_type = media_type_of(manifest)
    if media_type not in {MANIFEST, DOCKER_MANIFEST}:
        raise _bad(where, f"its media type {media_type!r} is none we know")
    layers = document.get("layers")
    if not isinstance(layers, list) or len(layers) > _MOST_BLOBS:
        raise _bad(where, "it has no proper list of layers")
    return Image(
        Manifest(media_type, manifest.data),
        _descriptor(document.get("config"), where),
        tuple(_descriptor(layer, where) for layer in layers),
        str(document.get("artifactType") or ""),
    )


def subject_of(manifest: Manifest) -> str:
    """The digest of what a manifest is about, "" when it is about nothing."""
    subject = _load(manifest).get("subject")
    return _descriptor(subject, manifest.blob.digest).blob.digest if subject else ""


def is_index(manifest: Manifest) -> bool:
    """Whether it lists manifests rather than blobs."""
    return media_type_of(manifest) in {INDEX, DOCKER_INDEX}


def media_type_of(manifest: Manifest) -> str:
    """What the document says it is, else what it was served as, else what it looks like."""
    document = _load(manifest)
    said = str(document.get("mediaType") or manifest.media_type)
    return said or (INDEX if "manifests" in document else MANIFEST)


def annotations_of(manifest: Manifest) -> dict[str, str]:
    """The annotations of a manifest or index."""
    found = _load(manifest).get("annotations")
    return {str(key): str(text) for key, text in found.items()} if isinstance(found, dict) else {}


def read_index(manifest: Manifest, where: str) -> tuple[Descriptor, ...]:
    """The manifests that an index lists."""
    return tuple(_descriptor(entry, where) for entry in _entries(_load(manifest), where))


def index_rows(manifest: Manifest, where: str) -> tuple[dict[str, Any], ...]:
    """The same as they are written there, each checked."""
    rows = _entries(_load(manifest), where)
    for row in rows:
        _descriptor(row, where)
    return tuple(rows)


def platforms_of(manifest: Manifest, where: str) -> tuple[str, ...]:
    """The platforms that an index has images for; none for a single image, or a list of other things."""
    if not is_index(manifest):
        return ()
    rows = [row["platform"] for row in index_rows(manifest, where) if isinstance(row.get("platform"), dict)]
    named = (
        "/".join(str(row[key]) for key in ("os", "architecture", "variant") if row.get(key)) for row in rows
    )
    return tuple(dict.fromkeys(name for name in named if "/" in name and "unknown" not in name))


def _choose(index: Mapping[str, Any], platform: str, where: str) -> str:
    entries = _entries(index, where)
    wanted = platform.split("/")
    offered = []
    for entry in entries:
        found = entry.get("platform") if isinstance(entry, dict) else None
        if not isinstance(found, dict):
            if len(entries) == 1:  # a layout's index, or one that needs no choice
                return _descriptor(entry, where).blob.digest
            continue
        parts = [str(found.get(key) or "") for key in ("os", "architecture", "variant")]
        if parts[: len(wanted)] == wanted:
            return _descriptor(entry, where).blob.digest
        offered.append("/".join(filter(None, parts)))
    hint = "it has " + ", ".join(sorted(set(offered))) if offered else ""
    raise InputError(f"{where} has nothing for {platform}", reason="no-such-platform", hint=hint)


def _load(manifest: Manifest) -> dict[str, Any]:
    try:
        document = json.loads(manifest.data)
    except (ValueError, RecursionError) as problem:
        raise _bad(manifest.blob.digest, f"it is no JSON: {problem}") from problem
    if not isinstance(document, dict):
        raise _bad(manifest.blob.digest, "it is no JSON object")
    return document


def _entries(index: Mapping[str, Any], where: str) -> list[Any]:
    entries = index.get("manifests")
    if not isinstance(entries, list) or len(entries) > _MOST_BLOBS:
        raise _bad(where, "it has no proper list of manifests")
    return entries


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _bad(where, "a descriptor is missing")
    digest, size, annotations = value.get("digest"), value.get("size"), value.get("annotations") or {}
    if not is_digest(digest):
        raise _bad(where, f"{digest!r} is no sha256 digest")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _bad(where, f"{size!r} is no size")
    if not isinstance(annotations, dict):
        raise _bad(where, "annotations are no object")
    texts = {str(key): str(text) for key, text in annotations.items()}
    artifact_type = str(value.get("artifactType") or "")
    return Descriptor(str(value.get("mediaType") or ""), Blob(str(digest), size), texts, artifact_type)


def _bad(where: str, why: str) -> HostError:
    return HostError(f"{where} cannot be read as a manifest: {why}", reason="bad-manifest")
