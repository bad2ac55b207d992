"""An OCI image layout on disk as a target: the default, which needs no server (image-layout.md)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

from kairosbuild.core.atomic import replacing, write_bytes
from kairosbuild.core.digest import CHUNK, Blob, is_digest, of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.registry.manifests import is_index, media_type_of, read_image, read_index, subject_of
from kairosbuild.registry.target import (
    INDEX,
    LARGEST_MANIFEST,
    Descriptor,
    Manifest,
    OpenStream,
    Progress,
    silent,
)

REF_NAME = "org.opencontainers.image.ref.name"
_ABOUT = re.compile(r"sha256-([0-9a-f]{64})(?:\..*)?")
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutTarget:
    """A folder with `oci-layout`, `index.json` and `blobs/`. Writers of this program take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"oci:{folder}"

    # -- blobs --------------------------------------------------------------------------------

    def has_blob(self, blob: Blob) -> bool:
        """Whether the file is there with its size."""
        try:
            return self._path(blob.digest).stat().st_size == blob.size
        except OSError:
            return False

    def put_blob(
        self, blob: Blob, open_stream: OpenStream, *, mount_from: str = "", progress: Progress = silent
    ) -> int:
        """Copied, verified, renamed."""
        try:
            source = open_stream()
        except OSError as problem:
            raise HostError(f"{blob.digest} cannot be read: {problem}", reason="blob-unreadable") from problem
        with source, replacing(self._path(blob.digest)) as out:
            self._check(blob, _copy(source, out, progress), "blob-corrupt")
        return blob.size

    def get_blob(self, blob: Blob, into: Path, *, progress: Progress = silent) -> None:
        """Copied, verified, renamed."""
        with self._opened(blob.digest) as source, replacing(into) as out:
            self._check(blob, _copy(source, out, progress), "registry-lied")

    def read_range(self, blob: Blob, start: int, end: int) -> bytes:
        """Read where they are."""
        with self._opened(blob.digest) as source:
            source.seek(start)
            return source.read(end - start)

    # -- manifests ----------------------------------------------------------------------------

    def head_manifest(self, version: str) -> str | None:
        """The digest, when the manifest and all it names are there: anyone may tidy up a folder."""
        digest = version if is_digest(version) else self._tagged().get(version, "")
        if not digest or not self._path(digest).is_file():
            return None
        return digest if all(map(self.has_blob, self._named_by(digest))) else None

    def get_manifest(self, version: str) -> Manifest:
        """By digest, by tag, or ("") the only one there is."""
        if is_digest(version):
            return self._read(version)
        tags = self._tagged()
        plain = {tag: digest for tag, digest in tags.items() if not _spoken_of(tag)}
        if not version and len(set(plain.values())) == 1:
            version = next(iter(plain))
        if version not in tags:
            hint = "it has " + ", ".join(sorted(plain)) if plain else ""
            what = f"{self.name} has no {version or 'single image'}"
            raise HostError(what, reason="registry-not-found", hint=hint)
        return self._read(tags[version])

    def put_manifest(self, manifest: Manifest) -> bool:
        """A manifest is a blob here; one with a subject is listed in `index.json`, where readers look for it."""
        write_bytes(self._path(manifest.blob.digest), manifest.data)
        if not subject_of(manifest):
            return False
        entries = self._entries()
        if all(entry["digest"] != manifest.blob.digest for entry in entries):
            self._write([*entries, manifest.descriptor()])
        return True

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Those in `index.json` that name it as their subject, each once."""
        found: dict[str, Descriptor] = {}
        for manifest in map(self._read, dict.fromkeys(entry["digest"] for entry in self._entries())):
            if not is_index(manifest) and subject_of(manifest) == digest:
                image = read_image(manifest, self.name)
                found[image.digest] = Descriptor(manifest.media_type, manifest.blob, {}, image.artifact_type)
        return tuple(found.values())

    def tag(self, tags: Mapping[str, Manifest]) -> None:
        """One rename of `index.json` sets them all; then goes what only the replaced ones needed."""
        entries = self._entries()
        new = [{**tags[name].descriptor(), "annotations": {REF_NAME: name}} for name in sorted(tags)]
        every = [entry for entry in entries if _tag(entry) not in tags] + new
        named = [entry for entry in every if _tag(entry) and not _spoken_of(_tag(entry))]
        left = named + self._about(named, [entry for entry in every if entry not in named])
        self._write(left)
        self._drop([entry for entry in entries if entry not in left], left)

    def delete(self, digest: str, tags: Iterable[str] = ()) -> None:
        """Off the list, and what only it needed off the disk."""
        entries = self._entries()
        left = [entry for entry in entries if entry["digest"] != digest]
        self._write(left)
        self._drop([entry for entry in entries if entry["digest"] == digest], left)

    def tags(self) -> tuple[str, ...]:
        """Every name in `index.json`."""
        return tuple(sorted(self._tagged()))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until no other process of this program writes here, and keep it so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for left in self.folder.glob("blobs/sha256/.*.tmp"):  # by somebody who was killed here
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    # -- inside -------------------------------------------------------------------------------

    def _path(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    @contextmanager
    def _opened(self, digest: str) -> Iterator[BinaryIO]:
        try:
            stream = self._path(digest).open("rb")
        except FileNotFoundError as problem:
            raise HostError(f"{self.name} has no {digest}", reason="registry-not-found") from problem
        with stream:
            yield stream

    def _read(self, digest: str) -> Manifest:
        with self._opened(digest) as stream:
            data = stream.read(LARGEST_MANIFEST + 1)
        found = of_bytes(data)
        self._check(Blob(digest, len(data)), found, "registry-lied")
        return Manifest(media_type_of(Manifest("", data)), data)

    def _entries(self) -> list[dict[str, Any]]:
        """What `index.json` lists; none where there is no layout yet."""
        file = self.folder / "index.json"
        try:
            entries = json.loads(file.read_bytes())["manifests"]
            if all(is_digest(entry["digest"]) and _tag(entry) is not None for entry in entries):
                return list(entries)
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise HostError(f"{file} is no index of an OCI layout", reason="bad-layout", hint="remove the folder")

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
        write_bytes(self.folder / "oci-layout", _VERSION)
        write_bytes(self.folder / "index.json", json.dumps(document, sort_keys=True).encode())

    def _about(
        self, named: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """Of these entries, the ones that say something of what is there to stay, and theirs in turn."""
        alive = {entry["digest"] for entry in named}
        waiting = [entry for entry in others if entry["digest"] not in alive]
        found: list[Mapping[str, Any]] = []
        while fresh := [entry for entry in waiting if self._subject(entry) in alive]:
            alive |= {entry["digest"] for entry in fresh}
            waiting = [entry for entry in waiting if entry not in fresh]
            found += fresh
        return found

    def _subject(self, entry: Mapping[str, Any]) -> str:
        return _spoken_of(_tag(entry)) or subject_of(self._read(entry["digest"]))

    def _tagged(self) -> dict[str, str]:
        return {tag: entry["digest"] for entry in self._entries() if (tag := _tag(entry))}

    def _named_by(self, digest: str) -> tuple[Blob, ...]:
        """The blobs of a manifest, the manifests of an index."""
        manifest = self._read(digest)
        if is_index(manifest):
            return tuple(entry.blob for entry in read_index(manifest, self.name))
        return read_image(manifest, self.name).blobs

    def _closure(self, digests: Iterable[str]) -> set[str]:
        found: set[str] = set()
        for digest in digests:
            found.add(digest)
            manifest = self._read(digest)
            below = [blob.digest for blob in self._named_by(digest)]
            found |= self._closure(below) if is_index(manifest) else set(below)
        return found

    def _drop(self, replaced: Iterable[Mapping[str, Any]], left: Iterable[Mapping[str, Any]]) -> None:
        """Remove the blobs that only replaced manifests named. Where anything is odd, nothing is removed."""
        try:
            needed = self._closure(entry["digest"] for entry in left)
            gone = self._closure(entry["digest"] for entry in replaced) - needed
        except HostError:
            return
        for digest in gone:
            self._path(digest).unlink(missing_ok=True)

    def _check(self, expected: Blob, found: Blob, reason: str) -> None:
        if found != expected:
            what = f"{found.size} bytes (of {expected.size}), {found.digest}"
            raise HostError(f"{self.name}: instead of {expected.digest}: {what}", reason=reason)


def _tag(entry: Mapping[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(REF_NAME, ""))


def _spoken_of(tag: str) -> str:
    """The digest that such a tag (`sha256-HEX.sig`) says something about, "" for any other tag."""
    match = _ABOUT.fullmatch(tag)
    return f"sha256:{match[1]}" if match else ""


def _copy(source: BinaryIO | BufferedIOBase, out: BinaryIO, progress: Progress) -> Blob:
    sha, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        sha.update(chunk)
        out.write(chunk)
        size += len(chunk)
        progress(size)
    return Blob(f"sha256:{sha.hexdigest()}", size)
