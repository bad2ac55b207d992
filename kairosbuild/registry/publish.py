"""Publishing: blobs first and in parallel, manifests by digest, tags last and all together.

Nothing is sent that is there: a repetition is one HEAD for each tag. A tag never names what is not whole,
since it is set after everything it leads to has been acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry.documents import (
    Item,
    Package,
    Sources,
    Transport,
    artifact_package,
    image_package,
)
from kairosbuild.registry.manifests import index_rows, is_index, read_image, subject_of
from kairosbuild.registry.reference import is_tag
from kairosbuild.registry.target import INDEX, JOBS, Manifest, OpenStream, Progress, Target

if TYPE_CHECKING:
    from kairosbuild.core.events import Events
    from kairosbuild.registry.delta import Lister
    from kairosbuild.registry.referrers import Referrer
    from kairosbuild.store.cas import Cas

SYSTEM = "application/vnd.kairosbuild.system.v1"
NODE = "dev.kairosbuild.node"


@dataclass(frozen=True, slots=True)
class Published:
    """A node as it now stands in the target. `size` is all of it, `uploaded` what this run sent, in bytes."""

    name: str
    references: tuple[str, ...]
    digest: str
    size: int
    uploaded: int
    skipped: bool
    referrers: tuple[str, ...] = ()  # digests of what was attached


Attachments = Callable[[Target, Package], Sequence["Referrer"]]
"""What is said about a package that is there by its digest now; whoever gives this may sign it meanwhile."""


def publish(
    target: Target,
    items: Sequence[Item],
    tags: Sequence[str],
    *,
    cas: Cas,
    transport: Transport,
    events: Events,
    origin: Callable[[str], str] = lambda _: "",
    bring: Callable[[Blob], None] = lambda _: None,
    fixed: Sequence[str] = (),
    dry: bool = False,
    jobs: int = JOBS,
    attachments: Attachments | None = None,
    lister: Lister | None = None,
) -> tuple[Published, ...]:
    """Publish these nodes under these tags: the image as TAG, every other as TAG-NODE.

    `lister` cuts a large file of an artifact into chunks, so that who has an older one fetches what changed.

    What `attachments` gives for a package is attached before its tags, so that whoever follows a tag finds
    it signed.

    `transport` gives a layer's compressed form; `origin` tells which repository of the same registry may
    have a blob of this digest, so that it is mounted rather than sent. `bring` is called before a blob is read
    that may be elsewhere (in a shared cache). Tags that match a pattern of `fixed` are never moved. With `dry`
    nothing is sent, and `uploaded` is what would be.

    Several nodes are tied together by an index, TAG-index. Raises InputError (`bad-tag`), HostError
    (`registry-…`, `blob-corrupt`, `tag-immutable`).
    """
    made = packages(items, Sources(cas, bring), transport)
    named = _names(made, items, tags)
    with target.writing():
        wanted = {tag: p.manifest for tag, p in named.items()}
        if len(made) > 1:
            wanted |= _indexes(made, items, tags, wanted)
        there = {tag: target.head_manifest(tag) for tag in wanted}
        stale = [tag for tag, manifest in wanted.items() if there[tag] != manifest.blob.digest]
        if (
            stale and len(made) == 1
        ):  # an earlier publication of several left a list, which must not stay behind
            lists = _indexes(made, items, tags, wanted)
            there |= {tag: found for tag in lists if (found := target.head_manifest(tag))}
            wanted |= lists
            stale += [tag for tag in lists if tag in there]
        moved = [tag for tag in stale if there[tag]]
        _refuse_to_move(moved, fixed)
        _tell_what_stays(target, [tag for tag in moved if tag not in named], wanted, made, events)
        fresh = [p for p in made if any(named.get(tag) is p for tag in stale)]
        sent = _send(target, fresh, cas=cas, events=events, origin=origin, jobs=jobs, dry=dry)
        said = _attach(target, made, attachments) if attachments and not dry else {}
        if lister and fresh and not dry:
            _list_chunks(target, fresh, lister)
        if stale and not dry:
            for manifest in {wanted[tag].blob: wanted[tag] for tag in stale if tag not in named}.values():
                target.put_manifest(manifest)
            target.tag({tag: wanted[tag] for tag in stale})
    done = (_published(target, p, named, sent, fresh) for p in made)
    return tuple(replace(one, referrers=said.get(one.name, ())) for one in done)


def packages(items: Sequence[Item], sources: Sources, transport: Transport) -> list[Package]:
    """The manifests of these nodes, an artifact's about its image."""
    images = {i.name: image_package(i, sources, transport) for i in items if i.kind == "image"}
    return [
        images.get(item.name) or artifact_package(item, sources, _subject(item, images)) for item in items
    ]


def _subject(item: Item, images: Mapping[str, Package]) -> Manifest | None:
    """The image an artifact says it belongs to, else the only one there is."""
    found = images.get(item.subject) or (next(iter(images.values())) if len(images) == 1 else None)
    return found.manifest if found else None


def _names(packages: Sequence[Package], items: Sequence[Item], tags: Sequence[str]) -> dict[str, Package]:
    """Tag to package. The first image, in each cell of a matrix, has the plain tags."""
    first: dict[str, str] = {}
    for item in items:
        if item.kind == "image":
            first.setdefault(item.cell, item.name)
    named: dict[str, Package] = {}
    for package, item in zip(packages, items, strict=True):
        for tag in tags:
            plain = first.get(item.cell) == item.name
            name = "-".join(filter(None, (tag, "" if plain else item.label or item.name, item.cell)))
            if not is_tag(name) or name in named:
                why = "stands for two things" if name in named else "is none a registry takes"
                raise InputError(f"the tag {name!r} {why}", reason="bad-tag")
            named[name] = package
    return named


def _send(
    target: Target,
    packages: Sequence[Package],
    *,
    cas: Cas,
    events: Events,
    origin: Callable[[str], str],
    jobs: int,
    dry: bool,
) -> dict[Blob, int]:
    """Bring blobs, then manifests, of these packages; the bytes that each blob took."""
    absent = [p for p in packages if target.head_manifest(p.manifest.blob.digest) is None]
    if not absent:
        return {}
    from kairosbuild.registry.referrers import tell
    from kairosbuild.registry.transfers import in_parallel, move  # threads, where there is something to do

    sources: dict[Blob, OpenStream] = {blob: source for p in absent for blob, source in p.blobs.items()}
    there = in_parallel(target.has_blob, sources, jobs=jobs)
    lacking = [blob for blob, found in zip(sources, there, strict=True) if not found]
    sent: dict[Blob, int] = {}
    if dry:
        manifests = {p.manifest.blob: len(p.manifest.data) for p in absent}
        return {**{blob: blob.size for blob in lacking}, **manifests}

    def one(blob: Blob, progress: Progress) -> int:
        try:
            sent[blob] = target.put_blob(
                blob, sources[blob], mount_from=origin(blob.digest), progress=progress
            )
        except HostError as problem:
            if problem.reason == "blob-corrupt":
                cas.discard(blob.digest)
            raise
        return sent[blob]

    move(lacking, one, events, verb="push", jobs=jobs)
    for package in absent:
        noted = target.put_manifest(package.manifest)
        sent[package.manifest.blob] = len(package.manifest.data)
        if not noted and (subject := subject_of(package.manifest)):
            tell(target, subject, [package.manifest])
    return sent


def _attach(
    target: Target, made: Sequence[Package], attachments: Attachments
) -> Mapping[str, tuple[str, ...]]:
    """Say of each package what is said of it; the digests of what says so."""
    from kairosbuild.registry.referrers import attach

    return {p.name: attach(target, p.manifest, attachments(target, p)) for p in made}


def _list_chunks(target: Target, fresh: Sequence[Package], lister: Lister) -> None:
    from kairosbuild.registry.delta import referrer_of
    from kairosbuild.registry.referrers import attach

    for package in fresh:
        if lists := referrer_of(package, lister):
            attach(target, package.manifest, [lists])


def _indexes(
    made: Sequence[Package], items: Sequence[Item], tags: Sequence[str], taken: Mapping[str, Manifest]
) -> dict[str, Manifest]:
    """What belongs together in one list, so that one name leads to all of it."""
    rows = [
        {**p.manifest.descriptor(), **_kind_of(p.manifest), "annotations": {NODE: item.name}}
        for p, item in zip(made, items, strict=True)
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX, "artifactType": SYSTEM, "manifests": rows}
    index = Manifest(INDEX, canonical.dumps(document))
    return {name: index for tag in tags if is_tag(name := f"{tag}-index") and name not in taken}


def _kind_of(manifest: Manifest) -> dict[str, str]:
    found = read_image(manifest, "").artifact_type
    return {"artifactType": found} if found else {}


def _refuse_to_move(tags: Sequence[str], fixed: Sequence[str]) -> None:
    """Raises HostError `tag-immutable`, before anything is sent."""
    if held := [tag for tag in tags if any(fnmatchcase(tag, pattern) for pattern in fixed)]:
        raise HostError(
            f"the tag {held[0]} is there, means something else, and is not to be moved",
            reason="tag-immutable",
            hint="publish under another tag; `registry.immutable` of BUILD.yaml says which are fixed",
        )


def _tell_what_stays(
    target: Target,
    lists: Sequence[str],
    wanted: Mapping[str, Manifest],
    made: Sequence[Package],
    events: Events,
) -> None:
    """Name the tags of nodes that an earlier publication had and this one has not: nothing goes unasked."""
    for tag in lists:
        gone = _no_longer(target, tag, {package.name for package in made})
        beside = [one for one in target.tags() if one.startswith(tag.removesuffix("index"))] if gone else []
        for one in beside:
            if one not in wanted and target.head_manifest(one) in gone:
                remove = f"kbuild registry prune {target.name} --only {one} --keep-last 0"
                what = f"{one} is of an earlier publication and stays as it was; to remove it: {remove}"
                events.emit("note", target.name, message=what)


def _no_longer(target: Target, index: str, names: Collection[str]) -> set[str]:
    """What an index lists of nodes that are none of these."""
    manifest = target.get_manifest(index)
    if not is_index(manifest):
        return set()
    nodes = {row["digest"]: (row.get("annotations") or {}).get(NODE) for row in index_rows(manifest, index)}
    return {digest for digest, node in nodes.items() if node not in names}


def _published(
    target: Target,
    package: Package,
    named: Mapping[str, Package],
    sent: Mapping[Blob, int],
    fresh: Sequence[Package],
) -> Published:
    blobs = (*package.blobs, package.manifest.blob)
    return Published(
        name=package.name,
        references=tuple(f"{target.name}:{tag}" for tag, p in named.items() if p is package),
        digest=package.manifest.blob.digest,
        size=package.size,
        uploaded=sum(sent.get(blob, 0) for blob in blobs),
        skipped=package not in fresh,
    )
