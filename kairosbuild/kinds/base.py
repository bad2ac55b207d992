"""Kind `base`: the bottom of a stack, as one layer: bootstrapped from an archive, or an image, or a tar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kairosbuild.core.digest import Blob, of_file
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.recipe.fields import choice, flag, record, ref, source, text, texts

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class DebianSpec:
    """What of Debian to begin with."""

    suite: str = text("The release by its name.", example="trixie", pattern="[a-z][a-z0-9-]*")
    variant: str = choice(
        "How much: the essential packages only, those and apt, or all of priority `required` and apt.",
        ("essential", "apt", "required"),
        "essential",
    )
    packages: tuple[str, ...] = texts("More packages to begin with.", ())
    components: tuple[str, ...] = texts("Components of the archive.", ("main",), least=1)
    security: bool = flag("Take updates and security fixes of the release too.", True)


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """Exactly one of the fields says where it comes from."""

    debian: DebianSpec | None = record("Bootstrap Debian from this machine's mirror.", DebianSpec, None)
    image: str = text(
        "An OCI image in a registry, or `oci-layout:DIR:TAG`.", "", example="quay.io/fedora/fedora:43"
    )
    tarball: str = source("A tar of a root file system in the workspace, plain or compressed.", "")
    archive: str = ref("A node whose file is such a tar.", "", accepts=("file",))


class Base:
    """See the module."""

    name: ClassVar[str] = "base"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = BaseSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: BaseSpec) -> tuple[str, ...]:
        """None: Debian is installed by its own dpkg; apt is needed to resolve only."""
        return ()

    def lock(self, spec: BaseSpec, locker: Locker) -> Locked:
        """The packages of a bootstrap, the layers of an image."""
        _one_of(spec)
        if spec.debian:
            return _lock_debian(spec.debian, locker)
        return _lock_image(spec.image, locker) if spec.image else UNLOCKED

    def build(self, task: Task) -> Outputs:
        """One canonical layer."""
        if task.spec.debian:
            return _bootstrap(task)
        if task.spec.image:
            return _flatten(task, [task.path(Blob(m.digest, m.size)) for m in task.locked.materials])
        if task.spec.archive:
            return _flatten(task, [task.path(task.inputs["archive"][0].outputs["file"])])
        return _flatten(task, [task.source_path("tarball", "")])


def _one_of(spec: BaseSpec) -> None:
    given = [name for name in ("debian", "image", "tarball", "archive") if getattr(spec, name)]
    if len(given) != 1:
        raise InputError(
            f"a base is one of debian, image, tarball and archive, not {' and '.join(given) or 'none'}",
            reason="base-source",
        )


def _lock_debian(spec: DebianSpec, locker: Locker) -> Locked:
    from kairosbuild.sources import apt
    from kairosbuild.sources.debian import open_archive, suites

    architecture = locker.platform.split("/")[1]
    wanted = suites(spec.suite, components=spec.components, security=spec.security)
    archive = open_archive(wanted, architecture, locker.fetch)
    names = set(archive.index.having("Essential", "yes"))
    if spec.variant == "required":
        names |= set(archive.index.having("Priority", "required"))
    if spec.variant != "essential":
        names.add("apt")
    request = apt.Request(tuple(sorted(names | set(spec.packages))))
    apt.check(request, archive)
    action = Action(
        apt.command(request, architecture),
        (locker.tools("apt"),),
        {path: locker.put_bytes(data) for path, data in apt.inputs(request, archive).items()},
        outputs=(apt.PLAN, apt.COMPLAINT),
        platform=locker.platform,
    )
    left = {name: locker.path(blob).read_bytes() for name, blob in locker.execute(action).outputs.items()}
    plan = apt.read_plan(left[apt.PLAN], left[apt.COMPLAINT], request, archive)
    packages = sorted(plan.packages, key=lambda package: package.name)
    return Locked(
        {
            "archives": [suite.json() for suite in wanted],
            "packages": [package.json() for package in packages],
        },
        tuple(Material(package.uri, package.digest, package.size) for package in packages),
    )


def _bootstrap(task: Task) -> Outputs:
    """Unpack everything with its owners, then let dpkg install it all over again, and keep the sum."""
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.merge import merge
    from kairosbuild.sources import dpkg

    names = [package["name"] for package in task.locked.data["packages"]]
    blobs = [Blob(material.digest, material.size) for material in task.locked.materials]
    layer, index = _unpacked(task, [task.path(blob) for blob in blobs])
    script = task.put_bytes(dpkg.bootstrap_script(names).encode())
    inputs = {dpkg.file_name(name): blob for name, blob in zip(names, blobs, strict=True)}
    done = task.execute(
        Action(
            ("/bin/sh", "/in/install.sh"),
            (layer,),
            {**inputs, "install.sh": script},
            env=dpkg.ENVIRONMENT,
            cwd="/",
            layer=True,
            drop=dpkg.DROPPED,
            platform=task.platform,
        )
    )
    assert done.layer is not None
    stack = [
        (task.path(tar), Index.loads(task.path(rows).read_bytes()))
        for tar, rows in ((layer, index), (done.layer.layer, done.layer.index))
    ]
    made = task.scratch / "base.tar"
    with made.open("wb") as out:
        rows = merge(stack, out, task.epoch)
    return layer_outputs(task, made, rows)


def _unpacked(task: Task, debs: list[Path]) -> tuple[Blob, Blob]:
    """The layer that dpkg begins with."""
    import tempfile

    from kairosbuild.oci.layer import Slice, write_layer
    from kairosbuild.sources import dpkg
    from kairosbuild.sources.deb import merged_links, unpack

    made = task.scratch / "unpacked.tar"
    with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
        items = {entry.path: (entry, content) for entry, content in unpack(debs, spool)}
        for entry, content in merged_links(task.platform.split("/")[1]):
            items.setdefault(entry.path, (entry, content))
        read = {}
        for path, (entry, content) in items.items():
            if path.startswith("usr/share/base-passwd/") and isinstance(content, Slice):
                spool.seek(content.offset)
                read[path] = spool.read(entry.size)
        index = task.put_bytes(write_layer(dpkg.seed(items.values(), read), out, task.epoch))
    return task.put_file(made), index


def _lock_image(image: str, locker: Locker) -> Locked:
    """The image's manifest for the platform and, as materials, its layers."""
    scheme, rest = ("oci-layout:", image.removeprefix("oci-layout:"))
    if rest == image:
        scheme, rest = "oci://", image
    path = locker.fetch(scheme + rest)
    document = _document(path, image)
    blob = of_file(path)
    name = _without_version(rest)
    if document.get("mediaType") in _INDEXES or "manifests" in document:
        chosen = _for_platform(document, locker.platform, image)
        blob = Blob(chosen["digest"], chosen["size"])
        path = locker.fetch(f"{scheme}{name}@{blob.digest}", digest=blob.digest, size=blob.size)
        document = _document(path, image)
    layers = [Blob(layer["digest"], layer["size"]) for layer in document.get("layers", ())]
    if not layers:
        raise InputError(f"{image} is no image: its manifest lists no layers", reason="base-image")
    materials = tuple(Material(f"{scheme}{name}@{one.digest}", one.digest, one.size) for one in layers)
    return Locked({"manifest": blob.digest}, materials)


def _document(path: Path, image: str) -> dict[str, Any]:
    import json

    try:
        document = json.loads(path.read_bytes())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise InputError(f"{image} has no manifest that can be read", reason="base-image")
    return document


def _for_platform(index: Mapping[str, Any], platform: str, image: str) -> Mapping[str, Any]:
    have = []
    for manifest in index.get("manifests", ()):
        about = manifest.get("platform") or {}
        name = f"{about.get('os')}/{about.get('architecture')}"
        have.append(name)
        if name == "/".join(platform.split("/")[:2]):
            return dict(manifest)
    raise InputError(
        f"{image} has nothing for {platform}",
        reason="base-platform",
        hint="it has " + ", ".join(sorted(have)),
    )


def _without_version(reference: str) -> str:
    """A reference without its tag and digest; a port is no tag."""
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def _flatten(task: Task, tars: list[Path]) -> Outputs:
    """Any tars, bottom to top, as one canonical layer; each is distrusted."""
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.merge import merge
    from kairosbuild.oci.reader import normalise

    stack = []
    for number, tar in enumerate(tars):
        made = task.scratch / f"layer-{number}.tar"
        with tar.open("rb") as stream, made.open("wb") as out:
            index = normalise(stream, out, task.epoch, scratch=task.scratch)
        stack.append((made, index))
    if len(stack) == 1:
        return layer_outputs(task, *stack[0])
    merged = task.scratch / "base.tar"
    with merged.open("wb") as out:
        rows = merge([(tar, Index.loads(index)) for tar, index in stack], out, task.epoch)
    return layer_outputs(task, merged, rows)
