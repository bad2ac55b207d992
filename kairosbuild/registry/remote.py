"""A repository of a registry as a target (OCI distribution specification 1.1)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from kairosbuild.core.atomic import replacing
from kairosbuild.core.digest import Blob, is_digest
from kairosbuild.core.errors import HostError
from kairosbuild.registry.client import Access, Client
from kairosbuild.registry.hashing import Hashing
from kairosbuild.registry.reference import Reference
from kairosbuild.registry.retry import Fault
from kairosbuild.registry.target import (
    INDEX,
    LARGEST_MANIFEST,
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    OpenStream,
    Progress,
    silent,
)
from kairosbuild.registry.wire import PIECE, Reply

_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES)}
_MOST_TAG_PAGES = 1000


class RemoteTarget:
    """One repository, read and written through a shared `Client`."""

    def __init__(self, reference: Reference, client: Client) -> None:
        self.reference = reference.bare
        self.name = str(self.reference)
        self._client = client
        self._pull = (Access(reference.repository, "pull"),)
        self._delete = (Access(reference.repository, "delete,pull,push"),)
        self._push = (Access(reference.repository, "pull,push"),)

    # -- blobs --------------------------------------------------------------------------------

    def has_blob(self, blob: Blob) -> bool:
        """One HEAD. Asked with the right to push, since a push is what it saves."""

        def ask() -> bool:
            url = self._client.url(self.reference, f"blobs/{blob.digest}")
            with self._client.request("HEAD", url, access=self._push, ok=(200, 404)) as reply:
                length = reply.headers.get("Content-Length", str(blob.size))
                return reply.status == 200 and length == str(blob.size)

        return bool(self._client.retry(ask))

    def put_blob(
        self, blob: Blob, open_stream: OpenStream, *, mount_from: str = "", progress: Progress = silent
    ) -> int:
        """POST for a place (or a mount from a repository of the same registry), one PUT of the bytes."""

        def upload() -> int:
            place = self._begin(blob, mount_from)
            if not place:
                return 0
            url = _with_query(place, digest=blob.digest)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
            body = (lambda: _Upload(blob, open_stream, progress)) if blob.size else (lambda: b"")
            with self._client.request(
                "PUT", url, access=self._push, ok=(201, 204), headers=headers, body=body
            ) as reply:
                self._check_echo(reply, blob.digest)
            return blob.size

        return int(self._client.retry(upload))

    def get_blob(self, blob: Blob, into: Path, *, progress: Progress = silent) -> None:
        """Streamed to a temporary name, verified, renamed. What broke off goes on where it stopped."""
        with replacing(into) as out:
            got = _Received(out, blob.size)
            self._client.retry(lambda: self._receive(blob, got, progress), moved=lambda: got.moved)
            self._check(blob, got.blob)

    def _receive(self, blob: Blob, got: _Received, progress: Progress) -> None:
        url = self._client.url(self.reference, f"blobs/{blob.digest}")
        headers = {"Range": f"bytes={got.moved}-"} if got.moved else {}
        with self._client.request("GET", url, access=self._pull, ok=(200, 206), headers=headers) as reply:
            if reply.status == 206:
                self._check_range(reply, blob, got.moved)
            else:
                got.restart()
                self._check_length(reply, blob.size, blob)
            for piece in reply.pieces(blob.size - got.moved + 1):
                got.take(piece)
                progress(got.moved)
            got.settle()

    def read_range(self, blob: Blob, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`; the caller verifies them. Raises HostError `registry-no-ranges`."""

        def get() -> bytes:
            url = self._client.url(self.reference, f"blobs/{blob.digest}")
            headers = {"Range": f"bytes={start}-{end - 1}"}
            with self._client.request("GET", url, access=self._pull, ok=(200, 206), headers=headers) as reply:
                if reply.status == 200:
                    raise HostError(f"{self.name}: the registry knows no ranges", reason="registry-no-ranges")
                self._check_range(reply, blob, start)
                data = reply.read_all(end - start)
                if len(data) < end - start:
                    raise Fault(f"{reply.place}: the answer ends early", reason="registry-broken-off")
                return data

        return bytes(self._client.retry(get))

    def _begin(self, blob: Blob, mount_from: str) -> str:
        """Where the upload goes, or "" when the blob was mounted."""
        url = self._client.url(self.reference, "blobs/uploads/")
        access: tuple[Access, ...] = self._push
        if mount_from and mount_from != self.reference.repository:
            url = _with_query(url, mount=blob.digest, **{"from": mount_from})
            access = (*self._push, Access(mount_from, "pull"))
        with self._client.request(
            "POST", url, access=access, ok=(201, 202), headers={"Content-Length": "0"}, body=lambda: b""
        ) as reply:
            if reply.status == 201:
                return ""
            location = reply.headers.get("Location", "")
            if not location:
                raise self._lied("gives no place for an upload")
            return self._client.follow(reply.url, location)

    # -- manifests ----------------------------------------------------------------------------

    def head_manifest(self, version: str) -> str | None:
        """One HEAD; a registry that names no digest there is asked for the manifest."""

        def ask() -> str | None:
            with self._client.request(
                "HEAD", self._manifest_url(version), access=self._pull, ok=(200, 404), headers=_ACCEPT
            ) as reply:
                if reply.status == 404:
                    return None
                return reply.headers.get("Docker-Content-Digest", "")

        found: str | None = self._client.retry(ask)
        if found is None or is_digest(found):
            return found
        return self.get_manifest(version).blob.digest

    def get_manifest(self, version: str) -> Manifest:
        """One GET, verified against the digest asked for, and against the one told."""

        def get() -> Manifest:
            with self._client.request(
                "GET", self._manifest_url(version), access=self._pull, headers=_ACCEPT
            ) as reply:
                data = reply.read_all(LARGEST_MANIFEST)
                found = Manifest(reply.headers.get("Content-Type", "").partition(";")[0], data)
                expected = version if is_digest(version) else found.blob.digest
                self._check(Blob(expected, len(data)), found.blob)
                self._check_echo(reply, found.blob.digest)
                return found

        manifest: Manifest = self._client.retry(get)
        return manifest

    def put_manifest(self, manifest: Manifest) -> bool:
        """PUT under its digest; a registry that keeps referrers says so (distribution-spec, Pushing Manifests)."""
        return self._put_manifest(manifest, manifest.blob.digest)

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Every page of the referrers API; 404 means that there is none."""
        url = self._client.url(self.reference, f"referrers/{digest}")
        found: list[Descriptor] = []
        for _ in range(_MOST_TAG_PAGES):
            page, url = self._client.retry(partial(self._referrers_page, url))
            if page is None:
                return None
            found += page
            if not url:
                break
        return tuple(found)

    def tag(self, tags: Mapping[str, Manifest]) -> None:
        """PUT under each tag, one right after the other, since a registry has no transaction."""
        for tag, manifest in tags.items():
            self._put_manifest(manifest, tag)

    def delete(self, digest: str, tags: Iterable[str] = ()) -> None:
        """DELETE by digest; then each tag that is still there, since with some registries a tag outlives it."""
        self._remove(digest)
        for tag in tags:
            if self.head_manifest(tag) == digest:
                self._remove(tag)

    def _remove(self, version: str) -> None:
        """DELETE; what is gone already is no failure."""

        def remove() -> None:
            where = self._manifest_url(version)
            with self._client.request("DELETE", where, access=self._delete, ok=(200, 202, 404, 405)) as reply:
                if reply.status == 405:
                    raise HostError(
                        f"{self.name}: the registry deletes nothing",
                        reason="registry-no-delete",
                        hint="docker-registry: storage: {delete: {enabled: true}}",
                    )

        self._client.retry(remove)

    def writing(self) -> AbstractContextManager[None]:
        """A registry keeps its writers apart itself."""
        return nullcontext()

    def tags(self) -> tuple[str, ...]:
        """Every page of the list."""
        url = self._client.url(self.reference, "tags/list")
        found: set[str] = set()
        for _ in range(_MOST_TAG_PAGES):
            page, url = self._client.retry(partial(self._tags_page, url))
            found |= set(page)
            if not url:
                break
        return tuple(sorted(found))

    def _put_manifest(self, manifest: Manifest, version: str) -> bool:
        def put() -> bool:
            with self._client.request(
                "PUT",
                self._manifest_url(version),
                access=self._push,
                ok=(201,),
                headers={"Content-Type": manifest.media_type},
                body=lambda: manifest.data,
            ) as reply:
                self._check_echo(reply, manifest.blob.digest)
                return "OCI-Subject" in reply.headers

        return bool(self._client.retry(put))

    def _referrers_page(self, url: str) -> tuple[tuple[Descriptor, ...] | None, str]:
        from kairosbuild.registry.manifests import read_index

        with self._client.request("GET", url, access=self._pull, ok=(200, 404)) as reply:
            data = reply.read_all(LARGEST_MANIFEST)
            if reply.status == 404:
                return None, ""
            following = reply.following
            page = read_index(Manifest(INDEX, data), f"{self.name}: the referrers")
            return page, self._client.follow(url, following) if following else ""

    def _tags_page(self, url: str) -> tuple[list[str], str]:
        with self._client.request("GET", url, access=self._pull, ok=(200, 404)) as reply:
            data = reply.read_all(LARGEST_MANIFEST)
            if reply.status == 404:
                return [], ""
            try:
                names = [str(name) for name in json.loads(data).get("tags") or []]
            except (ValueError, AttributeError) as problem:
                raise self._lied("lists its tags in no known shape") from problem
            following = reply.following
            return names, self._client.follow(url, following) if following else ""

    def _manifest_url(self, version: str) -> str:
        return self._client.url(self.reference, f"manifests/{quote(version or 'latest', safe=':')}")

    # -- distrust -----------------------------------------------------------------------------

    def _check(self, expected: Blob, found: Blob) -> None:
        if found != expected:
            what = f"{found.size} bytes (of {expected.size}), {found.digest}"
            raise self._lied(f"sends something else for {expected.digest}: {what}")

    def _check_length(self, reply: Reply, expected: int, blob: Blob) -> None:
        length = reply.headers.get("Content-Length")
        if length is not None and length != str(expected):
            raise self._lied(f"announces {length} bytes for {blob.digest}, which has {expected}")

    def _check_range(self, reply: Reply, blob: Blob, start: int) -> None:
        said = reply.headers.get("Content-Range", "")
        if not said.startswith(f"bytes {start}-"):
            raise self._lied(f"sends {said!r} of {blob.digest}, asked for what follows byte {start}")

    def _check_echo(self, reply: Reply, digest: str) -> None:
        echo = reply.headers.get("Docker-Content-Digest", digest)
        if echo != digest:
            raise self._lied(f"calls {echo} what is {digest}")

    def _lied(self, what: str) -> HostError:
        return HostError(f"{self.name}: the registry {what}", reason="registry-lied")


class _Received:
    """What has come of a blob so far, over any number of connections."""

    def __init__(self, out: BinaryIO, size: int) -> None:
        self._out, self._size = out, size
        self._sha = Hashing(size)

    @property
    def moved(self) -> int:
        """Bytes so far."""
        return self._sha.size

    @property
    def blob(self) -> Blob:
        """What it is."""
        return Blob(self._sha.digest(), self.moved)

    def take(self, piece: memoryview) -> None:
        """More of it. The piece before may be overwritten from here on, this one may not."""
        self._sha.update(piece)
        self._out.write(piece)

    def settle(self) -> None:
        """Be done with every piece."""
        self._sha.settle()

    def restart(self) -> None:
        """From the first byte."""
        if self.moved:
            self._out.seek(0)
            self._out.truncate()
            self._sha = Hashing(self._size)


class _Upload:
    """A blob's bytes in pieces. The last one is held back until the whole is known to be the blob's."""

    def __init__(self, blob: Blob, open_stream: OpenStream, progress: Progress) -> None:
        self._blob = blob
        self._open = open_stream
        self._progress = progress

    def __iter__(self) -> Iterator[memoryview]:
        try:
            yield from self._pieces()
        except OSError as problem:  # ours, not the network's: trying again will not help
            what = f"{self._blob.digest} cannot be read: {problem}"
            raise HostError(what, reason="blob-unreadable") from problem

    def _pieces(self) -> Iterator[memoryview]:
        """Two buffers by turns: while one is sent, the other one is hashed."""
        sha, held = Hashing(self._blob.size), memoryview(b"")
        buffers = cycle([memoryview(bytearray(min(PIECE, self._blob.size + 1))) for _ in range(2)])
        with self._open() as stream:
            while got := stream.readinto(buffer := next(buffers)):
                sha.update(buffer[:got])
                if held:
                    yield held
                    self._progress(sha.size - got)
                held = buffer[:got]
        if Blob(sha.digest(), sha.size) != self._blob:
            what = f"the stored bytes are not {self._blob.digest} any more"
            raise HostError(what, reason="blob-corrupt", hint="`kbuild cache verify` removes what is damaged")
        yield held
        self._progress(sha.size)


def _with_query(url: str, **more: str) -> str:
    """The address with these added to its query."""
    parts = urlsplit(url)
    query = [*parse_qsl(parts.query, keep_blank_values=True), *more.items()]
    return parts._replace(query=urlencode(query)).geturl()
