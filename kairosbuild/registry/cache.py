"""A repository of a registry as the cache that machines share: a tag for each key, the real blobs below it.

`cache-KEY` is a manifest whose config is the record and whose layers are the blobs that the record names,
as they are. To publish one of them from the same registry is therefore a mount, and a registry's own
garbage collection keeps what a tag needs. Blobs go first, the tag last.

Nothing of it is believed: a record is read for the key that was asked for, names no blob that its manifest
does not hold, and is signed by one of the keys to be trusted where some are named; blobs are hashed. What is
amiss is a miss. What fails is told once, and then the build goes on without.
"""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob, is_digest, of_bytes
from kairosbuild.core.errors import HostError, KbuildError
from kairosbuild.core.events import Events
from kairosbuild.registry.documents import CREATED, in_memory
from kairosbuild.registry.fetch import read
from kairosbuild.registry.known import Known
from kairosbuild.registry.manifests import Image, read_image
from kairosbuild.registry.target import MANIFEST, TITLE, Manifest, Progress, Target
from kairosbuild.registry.transfers import move
from kairosbuild.store import record as records
from kairosbuild.store.cas import Cas
from kairosbuild.store.record import Record

RECORD = "application/vnd.kairosbuild.record.v1+json"
PREFIX = "cache-"
SIGNATURE = "dev.kairosbuild.record.signature"
_DOMAIN = b"kairosbuild.record.v1\n"  # so that no other signature of a key can be passed off as one of these
_OCTETS = "application/octet-stream"
_INLINE = 256 << 10  # bytes of a record that go into the manifest too, so that a look-up is one request
_DOCUMENT = 1 << 20  # bytes: a document that names blobs is smaller
_WRITERS = 4  # results uploaded at once
_ABSENT = "registry-not-found"

Found = tuple[Record, frozenset[Blob]]
"""A record, and the blobs that its manifest keeps: its own, and what the documents among them name."""

Sign = Callable[[bytes], bytes]
Trust = Callable[[bytes, bytes], bool]
"""Whether one of the keys to be trusted has signed these bytes so."""


def tag_of(key: str) -> str:
    """The tag of a key."""
    return PREFIX + key


class SharedCache:
    """One repository, to look results up in and, when `writes`, to put them into.

    `known` is what this machine is known to have put there. `sign` signs the records put; with `trust`, only records signed by one of its keys are believed.
    """

    name = "registry"

    def __init__(
        self,
        target: Target,
        cas: Cas,
        events: Events,
        *,
        known: Known | None = None,
        sign: Sign | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.target = target
        self._cas, self._events = cas, events
        self._sign, self._trust = sign, trust
        self._lock = threading.Lock()
        self._dead = self._full = False
        self._shunned: set[str] = set()
        self._broken: set[Blob] = set()
        self._moving: dict[Blob, threading.Lock] = {}
        self._known = known
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []
        self._taken: set[str] = set()

    # -- looking up ----------------------------------------------------------------------------

    def get(self, key: str) -> Found | None:
        """The record of this key, if one is there and what it should be, and every blob kept for it."""
        if self._dead or key in self._shunned:
            return None
        try:
            manifest = self.target.get_manifest(tag_of(key))
            found, why = self._read(key, manifest)
        except HostError as problem:
            self._failed(problem)
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            found, why = None, "it cannot be read"
        if found is None:
            self.shun(key, why)
        return found

    def shun(self, key: str, why: str) -> None:
        """Never give this record again, and write over it when it was made anew."""
        with self._lock:
            self._shunned.add(key)
        self._note(f"the record {key[:12]} in {self.target.name} is not used: {why}")

    def bring(self, blobs: Collection[Blob]) -> None:
        """Bring those of these blobs that are there into the store."""
        if self._dead:
            return
        folder = self._cas.tmp()

        def one(blob: Blob, progress: Progress) -> int:
            with suppress(_Gone), self._alone(blob):
                return 0 if self._cas.has(blob) else self._fetch(blob, folder / blob.hex, progress)
            return 0

        try:
            move(blobs, one, self._events, verb="fetch")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _alone(self, blob: Blob) -> threading.Lock:
        """Two nodes that read one blob move it once."""
        with self._lock:
            return self._moving.setdefault(blob, threading.Lock())

    def _fetch(self, blob: Blob, file: Path, progress: Progress) -> int:
        if self._dead:
            raise _Gone
        try:
            self.target.get_blob(blob, file, progress=progress)
        except HostError as problem:
            self._failed(problem)
            self._broken.add(blob)
            raise _Gone from problem
        self._cas.put_file(file, known=blob)
        return blob.size

    def _read(self, key: str, manifest: Manifest) -> tuple[Found | None, str]:
        """The record in a manifest, or why it is none for this key."""
        image = read_image(manifest, f"{self.target.name}:{tag_of(key)}")
        if RECORD not in (image.artifact_type, image.config.media_type):
            return None, "it is something else"
        data = self._config(image, manifest)
        if self._trust and not self._trust(_DOMAIN + data, _signature(manifest)):
            return None, "none of the keys to be trusted has signed it"
        record = records.read(key, canonical.loads(data))
        if record is None:
            return None, "it is another key's"
        held = frozenset(layer.blob for layer in image.layers)
        if not held.issuperset(_blobs(record)):
            return None, "it names blobs that its manifest does not hold"
        return (record, held), ""

    def _config(self, image: Image, manifest: Manifest) -> bytes:
        """The record's bytes, which the descriptor mostly carries along (image-spec, `data`)."""
        inline = canonical.loads(manifest.data)["config"].get("data")
        if inline is not None:
            data = base64.b64decode(inline)
            if of_bytes(data) != image.config.blob:
                raise HostError(
                    f"{self.target.name}: a descriptor's data is not its own", reason="registry-lied"
                )
            return data
        return read(self.target, image.config.blob)

    # -- putting -------------------------------------------------------------------------------

    def put(self, record: Record) -> None:
        """Upload a result, in the background, unless it is there."""
        with self._lock:
            if self._dead or self._full or record.key in self._taken:
                return
            self._taken.add(record.key)
        if self._known and record.key in self._known and record.key not in self._shunned:
            return
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_WRITERS, thread_name_prefix="share")
            self._waiting.append(self._pool.submit(self._put, record))

    def finish(self) -> None:
        """Wait for what is being uploaded. Tells, never raises, what went wrong."""
        while self._waiting:
            self._waiting.pop(0).result()
        if self._known:
            self._known.save()

    def abandon(self) -> None:
        """Upload nothing more."""
        self._full = True
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _put(self, record: Record) -> None:
        if self._dead or self._full:
            return
        amiss = record.key in self._shunned or not self._broken.isdisjoint(_blobs(record))
        try:
            if amiss or self.target.head_manifest(tag_of(record.key)) is None:
                self._upload(record)
            if self._known:
                self._known.add(record.key)
        except KbuildError as problem:
            self._not_put(problem)
        except OSError as problem:
            self._note(f"{record.name or record.key[:12]} was not shared: {problem}")

    def _upload(self, record: Record) -> None:
        body = records.body(record)
        with self.target.writing():
            self.target.put_blob(of_bytes(body), in_memory(body))
            for blob in dict.fromkeys(_blobs(record)):
                self._upload_blob(blob)
            more = [blob for blob in named(record, self._cas) if self._upload_named(blob)]
            manifest = _manifest(record, body, more, self._sign(_DOMAIN + body) if self._sign else b"")
            self.target.put_manifest(manifest)
            self.target.tag({tag_of(record.key): manifest})

    def _upload_blob(self, blob: Blob) -> None:
        def send(blob: Blob, progress: Progress) -> int:
            return self.target.put_blob(
                blob, lambda: self._cas.path(blob.digest).open("rb"), progress=progress
            )

        if blob in self._broken or not self.target.has_blob(blob):
            move([blob], send, self._events, verb="share", jobs=1)

    def _upload_named(self, blob: Blob) -> bool:
        """A blob that an output names; another result's upload may have brought it already."""
        if not self._cas.has(blob):
            return self.target.has_blob(blob)
        self._upload_blob(blob)
        return True

    # -- failing -------------------------------------------------------------------------------

    def _failed(self, problem: HostError) -> None:
        """A question failed: absence and lies are misses, anything else ends the asking."""
        if problem.reason in (_ABSENT, "registry-lied", "bad-manifest"):
            if problem.reason != _ABSENT:
                self._note(f"not used from the cache: {problem.message}")
            return
        with self._lock:
            known, self._dead = self._dead, True
        if not known:
            self._note(f"no shared cache from here on: {problem.message}")

    def _not_put(self, problem: KbuildError) -> None:
        if problem.reason in ("blob-corrupt", "blob-unreadable"):
            self._note(f"not shared: {problem.message}")
            return
        with self._lock:
            known, self._full = self._full, True
        if not known:
            self._note(f"nothing more is put into the shared cache: {problem.message}")

    def _note(self, message: str) -> None:
        self._events.emit("note", message=message)


class _Gone(Exception):
    """This blob cannot be had."""


def _blobs(record: Record) -> list[Blob]:
    return [*record.outputs.values(), *([record.log] if record.log else [])]


def named(record: Record, cas: Cas) -> list[Blob]:
    """The blobs that the documents among a result's outputs name, and theirs: an image's layers, say.

    They belong to other results, which may be dropped on their own: kept here, this one is whole by itself.
    """
    own = set(_blobs(record))
    found: dict[Blob, None] = {}
    todo = [*record.outputs.values()]
    while todo:
        for blob in _descriptors(todo.pop(), cas):
            if blob not in found and blob not in own:
                found[blob] = None
                todo.append(blob)
    return list(found)


def _descriptors(blob: Blob, cas: Cas) -> Iterator[Blob]:
    """The blobs that a small JSON document names with digest and size."""
    if not 2 < blob.size <= _DOCUMENT or not cas.has(blob):
        return
    with cas.path(blob.digest).open("rb") as stream:
        if stream.read(1) not in (b"{", b"["):
            return
    try:
        todo = [canonical.loads(cas.read(blob))]
    except (HostError, ValueError, RecursionError):
        return
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if is_digest(value.get("digest")) and type(value.get("size")) is int:
                yield Blob(value["digest"], value["size"])
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _manifest(record: Record, body: bytes, more: Iterable[Blob], signature: bytes) -> Manifest:
    names = {blob: name for name, blob in reversed([*record.outputs.items()])}
    if record.log:
        names.setdefault(record.log, "log")
    config: dict[str, Any] = {"mediaType": RECORD, **of_bytes(body).json()}
    if len(body) <= _INLINE:
        config["data"] = base64.b64encode(body).decode()
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": RECORD,
        "config": config,
        "layers": [
            *({"mediaType": _OCTETS, **b.json(), "annotations": {TITLE: name}} for b, name in names.items()),
            *({"mediaType": _OCTETS, **blob.json()} for blob in more),
        ],
        "annotations": {
            CREATED: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),  # for who prunes by age
            **({SIGNATURE: base64.b64encode(signature).decode()} if signature else {}),
        },
    }
    return Manifest(MANIFEST, canonical.dumps(document))


def _signature(manifest: Manifest) -> bytes:
    annotations = canonical.loads(manifest.data).get("annotations") or {}
    return base64.b64decode(annotations.get(SIGNATURE, ""), validate=True)
