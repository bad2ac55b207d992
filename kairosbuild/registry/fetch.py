"""Getting what others published: blobs into the store, a single file by a material's uri."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.core.events import Events
from kairosbuild.registry.target import JOBS, Progress, Target, silent
from kairosbuild.registry.transfers import move
from kairosbuild.store.cas import Cas

_LARGEST = 256 << 20  # bytes of a document


def download(target: Target, blobs: Iterable[Blob], cas: Cas, events: Events, *, jobs: int = JOBS) -> int:
    """Bring every blob that the store lacks into it, verified; the bytes that moved."""
    folder = cas.tmp()

    def one(blob: Blob, progress: Progress) -> int:
        file = folder / blob.hex
        target.get_blob(blob, file, progress=progress)
        cas.put_file(file, known=blob)
        return blob.size

    try:
        return move(cas.missing(blobs), one, events, verb="pull", jobs=jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(target: Target, blob: Blob) -> bytes:
    """A document's bytes, verified. Raises HostError `referrer-size` for what is too large for one."""
    if blob.size > _LARGEST:
        what = f"{target.name}: {blob.digest} has {blob.size} bytes; what is said of an artifact has fewer"
        raise HostError(what, reason="referrer-size")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        target.get_blob(blob, file)
        return file.read_bytes()


def fetch(
    target: Target,
    version: str,
    into: Path,
    *,
    digest: str | None = None,
    size: int | None = None,
    progress: Progress = silent,
) -> Blob:
    """One blob or manifest as a file.

    Without a digest it is the manifest (or index) that `version` names. With digest and size it is that
    blob, or the manifest of that digest; with a digest alone, that manifest.
    """
    if digest is not None and size is not None:
        try:
            target.get_blob(Blob(digest, size), into, progress=progress)
            return Blob(digest, size)
        except HostError as problem:
            if problem.reason != "registry-not-found":
                raise
    manifest = target.get_manifest(digest or version)
    if size is not None and manifest.blob.size != size:
        what = f"{target.name}@{digest} has {manifest.blob.size} bytes, not {size}"
        raise HostError(what, reason="registry-lied")
    write_bytes(into, manifest.data)
    return manifest.blob
