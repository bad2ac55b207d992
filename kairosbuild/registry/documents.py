"""What a build made, as manifests: an image's from its document, an artifact's from its files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.oci.configuration import configuration, rfc3339
from kairosbuild.registry.target import EMPTY, MANIFEST, TITLE, Manifest, OpenStream

if TYPE_CHECKING:
    from kairosbuild.store.cas import Cas

CREATED = "org.opencontainers.image.created"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "zstd:chunked": "+zstd", "none": ""}


@dataclass(frozen=True, slots=True)
class Sent:
    """A layer as it travels, and the annotations that lead into it."""

    blob: Blob
    annotations: Mapping[str, str] = field(default_factory=dict)


Transport = Callable[[Blob, str], Sent]
"""The compressed form (gzip, zstd, …) of a layer, made once and remembered by whoever gives this."""


@dataclass(frozen=True, slots=True)
class Item:
    """A node to publish: its document in the store, and the image node it belongs to.

    `subject` "" means the only image among the items, if there is one. `label` stands in tags for the name,
    and `cell` (of a matrix) is what all tags of this item end in.
    """

    name: str
    kind: Literal["image", "artifact"]
    document: Blob
    subject: str = ""
    label: str = ""
    cell: str = ""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where bytes come from: the store. `bring` is called first for a blob that may be in a shared cache only."""

    cas: Cas
    bring: Callable[[Blob], None] = lambda _: None

    def stream(self, blob: Blob) -> OpenStream:
        """Opens a stored blob, whenever that is asked for."""

        def opened() -> io.BufferedIOBase:
            self.bring(blob)
            return self.cas.path(blob.digest).open("rb")

        return opened


@dataclass(frozen=True, slots=True)
class Package:
    """A manifest and every blob it names, each with where its bytes come from."""

    name: str
    manifest: Manifest
    blobs: Mapping[Blob, OpenStream]

    @property
    def size(self) -> int:
        """Bytes of the blobs and the manifest."""
        return sum(blob.size for blob in self.blobs) + len(self.manifest.data)


def image_package(item: Item, sources: Sources, transport: Transport) -> Package:
    """An OCI image: one layer per node, bottom to top (image-spec, manifest.md and config.md)."""
    document = _document(item, sources.cas)
    method = str(document["compression"])
    plain = [_blob(row["layer"]) for row in document["layers"]]
    sent = [Sent(layer) if method == "none" else transport(layer, method) for layer in plain]
    config = canonical.dumps(configuration(document))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, **of_bytes(config).json()},
        "layers": [_layer(method, layer) for layer in sent],
        "annotations": {CREATED: rfc3339(document["epoch"])},
    }
    return _package(item.name, manifest, {of_bytes(config): config}, [layer.blob for layer in sent], sources)


def _layer(method: str, sent: Sent) -> dict[str, Any]:
    notes = {"annotations": dict(sent.annotations)} if sent.annotations else {}
    return {"mediaType": LAYER + SUFFIX[method], **sent.blob.json(), **notes}


def artifact_package(item: Item, sources: Sources, subject: Manifest | None) -> Package:
    """An artifact: its type, an empty config, titled files, and the image it belongs to (manifest.md)."""
    document = _document(item, sources.cas)
    files = document["files"]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": document["artifactType"],
        "config": {"mediaType": EMPTY, **of_bytes(b"{}").json()},
        "layers": [
            {"mediaType": file["mediaType"], **_blob(file).json(), "annotations": {TITLE: file["title"]}}
            for file in files
        ],
        "annotations": {CREATED: rfc3339(0), **document["annotations"]},
        **({"subject": subject.descriptor()} if subject else {}),
    }
    return _package(item.name, manifest, {of_bytes(b"{}"): b"{}"}, [_blob(file) for file in files], sources)


def small_package(name: str, manifest: Mapping[str, Any], blobs: Mapping[Blob, bytes]) -> Package:
    """A manifest whose blobs are at hand."""
    sources = {blob: in_memory(data) for blob, data in blobs.items()}
    return Package(name, Manifest(MANIFEST, canonical.dumps(manifest)), sources)


def _package(
    name: str, manifest: Mapping[str, Any], small: Mapping[Blob, bytes], stored: list[Blob], sources: Sources
) -> Package:
    blobs: dict[Blob, OpenStream] = {blob: sources.stream(blob) for blob in stored}
    blobs |= {blob: in_memory(data) for blob, data in small.items()}
    return Package(name, Manifest(MANIFEST, canonical.dumps(manifest)), blobs)


def in_memory(data: bytes) -> OpenStream:
    """Opens bytes that are at hand."""
    return lambda: io.BytesIO(data)


def _document(item: Item, cas: Cas) -> Any:
    document = canonical.loads(cas.read(item.document))
    if document.get("schema") != 1:
        what = f"{item.name}: its {item.kind} document has schema {document.get('schema')}"
        raise HostError(what, reason="bad-document", hint="the store was written by another version")
    return document


def _blob(value: Mapping[str, Any]) -> Blob:
    return Blob(value["digest"], value["size"])
