"""What can be published to and read from: a repository of a registry, or an OCI layout on disk, alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Protocol

from kairosbuild.core import digest
from kairosbuild.core.digest import Blob

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE = "org.opencontainers.image.title"
MANIFEST_TYPES = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_INDEX)
LARGEST_MANIFEST = 4 << 20  # bytes; what registries must take (distribution-spec, Pushing Manifests)

JOBS = 6  # transfers in flight

OpenStream = Callable[[], BufferedIOBase]
"""Opens a blob's bytes from the start; called again for another attempt."""
Progress = Callable[[int], None]
"""Told how many bytes of a blob have moved so far."""


def silent(_: int) -> None:
    """The progress nobody watches."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index by its exact bytes, which are its identity."""

    media_type: str
    data: bytes

    @property
    def blob(self) -> Blob:
        """Its digest and size."""
        return digest.of_bytes(self.data)

    def descriptor(self) -> dict[str, Any]:
        """How another document names it."""
        return {"mediaType": self.media_type, **self.blob.json()}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    blob: Blob
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""


class Target(Protocol):
    """One repository. Whatever is read has been verified; whatever fails leaves no wrong or partial name.

    Methods may be called from several threads. They raise HostError (`registry-…`, `blob-corrupt`).
    """

    name: str
    """How people write it, without tag."""

    def has_blob(self, blob: Blob) -> bool:
        """Whether this blob is there with its size."""

    def put_blob(
        self, blob: Blob, open_stream: OpenStream, *, mount_from: str = "", progress: Progress = silent
    ) -> int:
        """Store a blob; the bytes sent, 0 where none had to be. Bytes that are not the blob's are refused."""

    def get_blob(self, blob: Blob, into: Path, *, progress: Progress = silent) -> None:
        """Write a blob to the file `into`, which appears only when size and digest are right."""

    def read_range(self, blob: Blob, start: int, end: int) -> bytes:
        """Some bytes of a blob, unverified. Raises HostError `registry-no-ranges` where only whole ones are had."""

    def head_manifest(self, version: str) -> str | None:
        """The digest that this tag or digest names, or None."""

    def get_manifest(self, version: str) -> Manifest:
        """The manifest that this tag or digest names; "" is the default one, `latest` in a registry.

        Raises HostError `registry-not-found`.
        """

    def put_manifest(self, manifest: Manifest) -> bool:
        """Store a manifest under its digest; everything it names must be there already.

        True when the target lists it among the referrers of its `subject` by itself.
        """

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """The manifests whose `subject` this is, None where the registry has no such question."""

    def tag(self, tags: Mapping[str, Manifest]) -> None:
        """Point every one of these tags at a manifest already stored."""

    def delete(self, digest: str, tags: Iterable[str] = ()) -> None:
        """Remove a manifest and every tag that names it, `tags` among them. Raises HostError `registry-no-delete`."""

    def writing(self) -> AbstractContextManager[None]:
        """Held by whoever publishes; keeps others of this program from writing at once where that matters."""

    def tags(self) -> tuple[str, ...]:
        """Every tag, sorted."""
