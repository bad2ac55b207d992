"""The images of one repository: manifests checked against their digests, blobs resumed and hashed as they come."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from kairosbuild.node import durable
from kairosbuild.node.http import Access, Broken, Session
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import Reference, is_digest

INDEX = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_EMPTY = "application/vnd.oci.empty.v1+json"
_ACCEPT = {"Accept": ", ".join((*MANIFEST, *INDEX))}
_MOST = 4 << 20
_CHUNK = 1 << 18
_ATTEMPTS = 5
_MOST_TAGS = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blob:
    """Something of a repository by its digest."""

    digest: str
    size: int
    media_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The file name it goes by."""
        return self.annotations.get("org.opencontainers.image.title", "")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest taken apart."""

    digest: str
    artifact_type: str
    config: Blob
    layers: tuple[Blob, ...]
    annotations: Mapping[str, str]
    subject: str = ""


class Repository:
    """What can be read of one repository. `fetched` counts the bytes of blobs that came."""

    def __init__(
        self, reference: Reference, access: Access, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.name = reference.name
        self._path = reference.repository
        self._session = Session(reference.host, access)
        self._sleep = sleep
        self.fetched = 0

    def manifest(self, version: str, platform: str = "") -> Manifest:
        """The manifest of a tag or digest; of an index, the one for this platform (`linux/amd64`)."""
        digest, document = self._document(version)
        if document.get("mediaType") in INDEX or "manifests" in document:
            return self.manifest(self._chosen(document, platform, digest))
        return _manifest(document, digest, f"{self.name}@{digest}")

    def referrers(self, digest: str, artifact_type: str, prefix: str = "") -> list[str]:
        """Digests of the manifests of this type that belong to another one.

        Told by the API, else by the fallback tag, else found among the tags that begin so.
        """
        for tail in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-')}"):
            _, document = self._if_there(tail, {"Accept": INDEX[0]})
            entries = document.get("manifests")
            if isinstance(entries, list):
                rows = [one for one in entries if isinstance(one, dict) and is_digest(one.get("digest"))]
                if found := [one["digest"] for one in rows if self._type(one) == artifact_type]:
                    return found
        _, document = self._if_there("tags/list", {})
        tags = [str(one) for one in document.get("tags") or () if str(one).startswith(prefix)]
        return [
            one.digest
            for one in map(self.manifest, sorted(tags)[:_MOST_TAGS])
            if one.artifact_type == artifact_type and one.subject == digest
        ]

    def _type(self, row: Mapping[str, Any]) -> str:
        """The type in a row of a list, for which some writers (cosign 3 among them) put the empty one."""
        said = str(row.get("artifactType") or "")
        if said not in ("", _EMPTY):
            return said
        try:
            return self.manifest(row["digest"]).artifact_type
        except Problem as problem:
            if problem.reason not in ("registry-not-found", "bad-manifest"):
                raise
            return ""  # a list may name what was removed

    def fetch(self, blob: Blob, into: Path, progress: Callable[[int], None] = lambda size: None) -> None:
        """Bring a blob to this file; what is there already of it is kept, and hashed with the rest.

        Raises Problem `registry-lied` when the bytes are not the digest's; the file is gone then.
        """
        self._again(lambda: self._resume(blob, into, progress))
        self.check(blob, into)

    def check(self, blob: Blob, into: Path) -> None:
        """Raise Problem `registry-lied` unless this file is the blob; it is gone then."""
        if _sha256(into) != blob.digest:
            into.unlink()
            raise Problem(
                f"{self.name}: a blob is not what its digest {blob.digest} says",
                reason="registry-lied",
                hint="somebody changed it, or the registry's disk is damaged; nothing was taken over",
            )

    def part(self, blob: Blob, start: int, length: int) -> bytes:
        """Some bytes of a blob; whoever asks checks them."""
        return self._again(lambda: self._part(blob, start, length))

    def small(self, blob: Blob) -> bytes:
        """A small blob as it is. Raises Problem `registry-lied`."""
        data = self.part(blob, 0, blob.size) if 0 < blob.size <= _MOST else b""
        if "sha256:" + hashlib.sha256(data).hexdigest() != blob.digest:
            raise Problem(f"{self.name}: {blob.digest} is something else", reason="registry-lied")
        return data

    def _if_there(self, tail: str, headers: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        try:
            return self._again(partial(self._read, tail, headers))
        except Problem as problem:
            if problem.reason != "registry-not-found":
                raise
            return "", {}

    # -- requests -----------------------------------------------------------------------------

    def _document(self, version: str) -> tuple[str, dict[str, Any]]:
        digest, document = self._again(lambda: self._read(f"manifests/{version}", _ACCEPT))
        if is_digest(version) and digest != version:
            raise Problem(
                f"{self.name}: what came for {version} has the digest {digest}",
                reason="registry-lied",
                hint="the manifest was changed; nothing was taken over",
            )
        return digest, document

    def _read(self, tail: str, headers: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        with self._session.get(self._path, tail, headers) as reply:
            try:
                data = reply.read(_MOST)
                document = json.loads(data)
            except (OSError, HTTPException) as problem:
                raise Broken(f"{self.name}: {problem}", reason="registry-broken-off") from problem
            except (ValueError, RecursionError) as problem:
                raise Problem(f"{self.name}: {tail} is no JSON", reason="bad-manifest") from problem
        if not isinstance(document, dict):
            raise Problem(f"{self.name}: {tail} is no JSON object", reason="bad-manifest")
        return "sha256:" + hashlib.sha256(data).hexdigest(), document

    def _resume(self, blob: Blob, into: Path, progress: Callable[[int], None]) -> None:
        have = into.stat().st_size if into.exists() else 0
        if have > blob.size:
            into.unlink()
            have = 0
        if have == blob.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._session.get(self._path, f"blobs/{blob.digest}", headers, (200, 206)) as reply:
            mode = "ab" if reply.status == 206 else "wb"
            with into.open(mode) as file:
                while data := _received(reply.read, _CHUNK, self.name):
                    self.fetched += len(data)
                    if file.tell() + len(data) > blob.size:
                        raise Problem(f"{self.name}: {blob.digest} does not end", reason="registry-lied")
                    file.write(data)
                    progress(len(data))
                file.flush()
                durable.sync(file.fileno())
        if into.stat().st_size < blob.size:
            raise Broken(f"{self.name}: the connection ended early", reason="registry-broken-off")

    def _part(self, blob: Blob, start: int, length: int) -> bytes:
        headers = {"Range": f"bytes={start}-{start + length - 1}"} if length < blob.size else {}
        with self._session.get(self._path, f"blobs/{blob.digest}", headers, (200, 206)) as reply:
            if reply.status == 200 and start:
                raise Problem(f"{self.name} knows no ranges", reason="registry-no-ranges")
            data = _received(reply.read, length, self.name)
        self.fetched += len(data)
        if len(data) < length:
            raise Broken(f"{self.name}: the connection ended early", reason="registry-broken-off")
        return data

    def _again(self, work: Callable[[], T]) -> T:
        """Do it once more while the failure is one that may pass."""
        for attempt in range(1, _ATTEMPTS):
            try:
                return work()
            except Broken:
                self._sleep(2.0**attempt)
        return work()

    def _chosen(self, index: Mapping[str, Any], platform: str, digest: str) -> str:
        for one in index.get("manifests", ()):
            found = one.get("platform") or {}
            if platform == f"{found.get('os')}/{found.get('architecture')}" and is_digest(one.get("digest")):
                return str(one["digest"])
        raise Problem(f"{self.name}@{digest} has nothing for {platform}", reason="no-such-platform")


def _received(read: Callable[[int], bytes], size: int, name: str) -> bytes:
    try:
        return read(size)
    except (OSError, HTTPException) as problem:
        raise Broken(
            f"{name}: {problem or 'the connection broke off'}", reason="registry-broken-off"
        ) from problem


def _manifest(document: Mapping[str, Any], digest: str, where: str) -> Manifest:
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise Problem(f"{where} is no manifest", reason="bad-manifest")
    subject = document.get("subject")
    return Manifest(
        digest,
        str(document.get("artifactType") or ""),
        _blob(document.get("config"), where),
        tuple(_blob(one, where) for one in layers),
        _texts(document.get("annotations")),
        str(subject.get("digest", "")) if isinstance(subject, dict) else "",
    )


def _blob(value: object, where: str) -> Blob:
    if not isinstance(value, dict) or not is_digest(value.get("digest")):
        raise Problem(f"{where}: a blob has no sha256 digest", reason="bad-manifest")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Problem(f"{where}: a blob has no size", reason="bad-manifest")
    return Blob(value["digest"], size, str(value.get("mediaType") or ""), _texts(value.get("annotations")))


def _texts(value: object) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "sha256:" + digest.hexdigest()
