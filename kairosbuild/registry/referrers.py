"""What is said about a manifest by others: signatures, inventories, provenance, hung on it by `subject`.

A registry that keeps referrers (distribution-spec, Referrers API) is told by the manifest's `subject` alone.
For one that does not, the specification has a tag, `sha256-HEX`, with an index of them. Two writers of that
index can overwrite one another, and old garbage collectors delete what no tag names; so each referrer gets a
tag of its own besides, `sha256-HEX.WORD`, and readers look at both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kairosbuild.core import canonical
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.registry.documents import Package, small_package
from kairosbuild.registry.fetch import read
from kairosbuild.registry.manifests import index_rows, is_index, read_image, read_index, subject_of
from kairosbuild.registry.target import EMPTY, INDEX, MANIFEST, Descriptor, Manifest, Target

_TRIES = 8  # at a list that others write too


@dataclass(frozen=True, slots=True)
class File:
    """One file of a referrer, its bytes at hand: they are documents, and small."""

    media_type: str
    data: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Referrer:
    """Something said about a manifest. `word` ends its own tag and replaces what had that tag before."""

    artifact_type: str
    files: tuple[File, ...]
    word: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    def about(self, subject: Mapping[str, Any]) -> Package:
        """The manifest that says this about `subject`, a descriptor."""
        layers = [
            {
                "mediaType": file.media_type,
                **of_bytes(file.data).json(),
                **({"annotations": dict(file.annotations)} if file.annotations else {}),
            }
            for file in self.files
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": self.artifact_type,
            "config": {"mediaType": EMPTY, **of_bytes(b"{}").json()},
            "layers": layers,
            "subject": dict(subject),
            **({"annotations": dict(self.annotations)} if self.annotations else {}),
        }
        blobs = {of_bytes(data): data for data in (b"{}", *(file.data for file in self.files))}
        return small_package(self.word, manifest, blobs)


def tag_of(digest: str, word: str = "") -> str:
    """The tag of a manifest's referrers, or with a word of one of them."""
    return digest.replace(":", "-") + (f".{word}" if word else "")


def attach(target: Target, subject: Manifest, referrers: Sequence[Referrer]) -> tuple[str, ...]:
    """Store these and have the target list them; their digests. Held in `target.writing()` by the caller.

    What is listed already is left alone: attaching again is one question.
    """
    packages = [one.about(subject.descriptor()) for one in referrers]
    digest = subject.blob.digest
    there = _known(target, digest) if packages else frozenset()
    fresh = [package for package in packages if package.manifest.blob.digest not in there]
    for package in fresh:
        put(target, package)
    untracked = [package for package in fresh if not target.put_manifest(package.manifest)]
    if untracked:
        target.tag({tag_of(digest, package.name): package.manifest for package in untracked})
        tell(target, digest, [package.manifest for package in untracked])
    return tuple(package.manifest.blob.digest for package in packages)


def _known(target: Target, digest: str) -> frozenset[str]:
    """The digests that the target lists as referrers of this one."""
    listing = target.referrers(digest)
    return frozenset(one.blob.digest for one in (_fallback(target, digest) if listing is None else listing))


def tell(target: Target, digest: str, manifests: Sequence[Manifest]) -> None:
    """List these under the fallback tag of the manifest they refer to, for a registry that lists none itself."""
    _merge(target, digest, [_descriptor(manifest) for manifest in manifests])


def put(target: Target, package: Package) -> None:
    """Store the blobs of a small package."""
    for blob, source in package.blobs.items():
        if not target.has_blob(blob):
            target.put_blob(blob, source)


def listed(target: Target, digest: str, artifact_type: str = "") -> tuple[Descriptor, ...]:
    """What refers to this manifest, of one type or of all, in the order of their digests."""
    found = target.referrers(digest)
    if found is None:
        found = (*_fallback(target, digest), *_tagged(target, digest))
    typed = {one.blob.digest: _typed(target, one) for one in found}
    wanted = (one for one in typed.values() if artifact_type in ("", one.artifact_type))
    return tuple(sorted(wanted, key=lambda one: one.blob.digest))


def files(target: Target, referrer: Descriptor) -> tuple[tuple[Descriptor, bytes], ...]:
    """The files of a referrer, verified, in memory."""
    image = read_image(target.get_manifest(referrer.blob.digest), target.name)
    return tuple((layer, read(target, layer.blob)) for layer in image.layers)


def _merge(target: Target, digest: str, mine: Sequence[dict[str, Any]]) -> None:
    """Add these to the index under the fallback tag, and look whether somebody overwrote it meanwhile."""
    tag = tag_of(digest)
    for attempt in range(_TRIES):
        there = _index(target, tag)
        by_digest = {row["digest"]: row for row in index_rows(there, target.name)} if there else {}
        if all(row["digest"] in by_digest for row in mine):
            return
        rows = {**by_digest, **{row["digest"]: row for row in mine}}
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [rows[key] for key in sorted(rows)]}
        manifest = Manifest(INDEX, canonical.dumps(document))
        target.tag({tag: manifest})
        import random

        time.sleep(0.05 * attempt * random.random())  # noqa: S311 (spreads writers)


def _index(target: Target, tag: str) -> Manifest | None:
    """The index under a tag; none when there is no such tag, or it is no index."""
    try:
        manifest = target.get_manifest(tag)
    except HostError as problem:
        if problem.reason != "registry-not-found":
            raise
        return None
    return manifest if is_index(manifest) else None


def _fallback(target: Target, digest: str) -> tuple[Descriptor, ...]:
    there = _index(target, tag_of(digest))
    return read_index(there, target.name) if there else ()


def _tagged(target: Target, digest: str) -> tuple[Descriptor, ...]:
    """Those that only their own tags still name."""
    found = []
    for tag in target.tags():
        if tag.startswith(tag_of(digest) + "."):
            manifest = target.get_manifest(tag)
            if not is_index(manifest) and subject_of(manifest) == digest:
                found.append(Descriptor(manifest.media_type, manifest.blob))
    return tuple(found)


def _typed(target: Target, one: Descriptor) -> Descriptor:
    """With its type, for which some writers of the index (cosign 3 among them) put the empty one."""
    if one.artifact_type and one.artifact_type != EMPTY:
        return one
    image = read_image(target.get_manifest(one.blob.digest), target.name)
    return Descriptor(one.media_type, one.blob, one.annotations, image.artifact_type)


def _descriptor(manifest: Manifest) -> dict[str, Any]:
    """A row of the index: with type and annotations, as the referrers API would have them."""
    document = canonical.loads(manifest.data)
    row = {**manifest.descriptor(), "artifactType": document["artifactType"]}
    if annotations := document.get("annotations"):
        row["annotations"] = annotations
    return row
