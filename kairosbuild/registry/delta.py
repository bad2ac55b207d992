"""Fetching what changed: a list of chunks beside each large file, and the older version that is at hand.

The list is a referrer of the artifact (`application/vnd.kairosbuild.chunks.v1`): one layer for each file, whose
annotation says which blob it is of; `oci.chunks` has its form. The client cuts what it has by the same rule,
takes the chunks that it knows from there, and asks for the others by ranges of the blob. Every chunk that comes
is hashed, and in the end the whole; whatever fails, the blob is fetched as if there were no list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from kairosbuild.core.atomic import replacing
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.oci import chunks
from kairosbuild.oci.chunks import Chunk
from kairosbuild.registry.documents import Package
from kairosbuild.registry.hashing import Hashing
from kairosbuild.registry.manifests import read_image
from kairosbuild.registry.referrers import File, Referrer, files, listed
from kairosbuild.registry.target import TITLE, Progress, Target, silent

TYPE = "application/vnd.kairosbuild.chunks.v1"
OF = "dev.kairosbuild.chunks.of"
LARGE = 8 << 20  # bytes; smaller files are not worth a list
_RANGE = 4 << 20  # bytes asked for at once
_AHEAD = 6  # ranges in flight
_WORTH = 0.7  # of a blob: when more than this has to come, all of it does

Lister = Callable[[Blob], bytes]
"""The list of a stored blob's chunks."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring chunks that have to come."""

    chunks: tuple[Chunk, ...]

    @property
    def start(self) -> int:
        return self.chunks[0].offset

    @property
    def end(self) -> int:
        return self.chunks[-1].offset + self.chunks[-1].size


def referrer_of(package: Package, lister: Lister) -> Referrer | None:
    """What lists the chunks of an artifact's large files, None when it has none."""
    layers = read_image(package.manifest, package.name).layers
    large = {layer.blob for layer in layers if TITLE in layer.annotations and layer.blob.size >= LARGE}
    if not large:
        return None
    lists = tuple(File(TYPE, lister(blob), {OF: blob.digest}) for blob in sorted(large))
    return Referrer(TYPE, lists, "chunks")


def lists_of(target: Target, digest: str) -> Mapping[str, bytes]:
    """The lists that were published beside an artifact, by the blob that each is of."""
    found: dict[str, bytes] = {}
    for referrer in listed(target, digest, TYPE):
        for layer, data in files(target, referrer):
            found[layer.annotations.get(OF, "")] = data
    return found


def fetch(
    target: Target, blob: Blob, listing: bytes, seeds: Sequence[Path], into: Path, progress: Progress = silent
) -> int | None:
    """Put a blob together from what `seeds` hold and from ranges; the bytes that came, None if it is not worth it.

    Raises HostError `registry-lied` for a chunk that is not itself or a list that lies, and what the target raises.
    """
    try:
        wanted = chunks.loads(listing, blob.size)
    except ValueError as problem:
        raise HostError(f"{target.name}: {problem}", reason="registry-lied") from problem
    with ExitStack() as opened:
        known = _known({chunk.sha256 for chunk in wanted}, seeds, opened)
        missing = list(dict.fromkeys(chunk for chunk in wanted if chunk.sha256 not in known))
        spans = list(_spans(missing))
        total = sum(span.end - span.start for span in spans)
        if total > blob.size * _WORTH:
            return None
        with replacing(into) as out:
            _assemble(target, blob, wanted, known, spans, out, progress)
    return total


def _known(
    wanted: set[bytes], seeds: Sequence[Path], opened: ExitStack
) -> dict[bytes, tuple[BinaryIO, int, int]]:
    """Where the chunks that are at hand stand: an open file, an offset, a size."""
    found: dict[bytes, tuple[BinaryIO, int, int]] = {}
    for seed in seeds:
        stream = opened.enter_context(seed.open("rb"))
        for chunk in chunks.chunks_of(seed):
            if chunk.sha256 in wanted:
                found.setdefault(chunk.sha256, (stream, chunk.offset, chunk.size))
    return found


def _spans(missing: Sequence[Chunk]) -> Iterator[_Span]:
    """Neighbours together, each chunk once, as many as one range may have."""
    seen: set[bytes] = set()
    run: list[Chunk] = []
    for chunk in missing:
        if chunk.sha256 in seen:
            continue
        seen.add(chunk.sha256)
        joins = run and run[-1].offset + run[-1].size == chunk.offset
        if run and (not joins or chunk.offset + chunk.size - run[0].offset > _RANGE):
            yield _Span(tuple(run))
            run = []
        run.append(chunk)
    if run:
        yield _Span(tuple(run))


def _assemble(
    target: Target,
    blob: Blob,
    wanted: Sequence[Chunk],
    known: Mapping[bytes, tuple[BinaryIO, int, int]],
    spans: Sequence[_Span],
    out: BinaryIO,
    progress: Progress,
) -> None:
    """Write the chunks in order. A chunk that stands twice is fetched once and read back."""
    whole, written = Hashing(blob.size), dict[bytes, int]()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="range") as pool:
        coming = _Coming(target, blob, spans, pool)
        for chunk in wanted:
            if chunk.sha256 in known:
                data = _read(*known[chunk.sha256])
            elif chunk.sha256 in written:
                data = _back(out, written[chunk.sha256], chunk.size)
            else:
                data = coming.take(chunk)
                written[chunk.sha256] = chunk.offset
            whole.update(data)
            out.write(data)
            progress(whole.size)
    if Blob(whole.digest(), whole.size) != blob:
        raise HostError(f"{target.name}: the chunks do not make up {blob.digest}", reason="registry-lied")


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _back(out: BinaryIO, offset: int, size: int) -> bytes:
    """Read what was written already."""
    out.flush()
    return os.pread(out.fileno(), size, offset)


class _Coming:
    """Ranges in flight, a few ahead of the one that is written."""

    def __init__(self, target: Target, blob: Blob, spans: Sequence[_Span], pool: ThreadPoolExecutor) -> None:
        self._target, self._blob, self._pool = target, blob, pool
        self._waiting = list(reversed(spans))
        self._flying: list[tuple[_Span, Future[bytes]]] = []
        self._here: dict[int, bytes] = {}

    def take(self, chunk: Chunk) -> bytes:
        """The bytes of the next chunk that has to come, verified."""
        while chunk.offset not in self._here:
            while self._waiting and len(self._flying) < _AHEAD:
                span = self._waiting.pop()
                call = self._pool.submit(self._target.read_range, self._blob, span.start, span.end)
                self._flying.append((span, call))
            span, call = self._flying.pop(0)
            data = call.result()
            for one in span.chunks:
                self._here[one.offset] = data[one.offset - span.start :][: one.size]
        data = self._here.pop(chunk.offset)
        if sha256(data).digest() != chunk.sha256:
            what = f"{self._target.name}: a chunk of {self._blob.digest} is not itself"
            raise HostError(what, reason="registry-lied")
        return data
