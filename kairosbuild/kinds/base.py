"""Kind `base`: the bottom of a stack, as one layer: bootstrapped from an archive, or an image, or a tar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kairosbuild.core.digest import Blob, of_file
from kairosbuild.core.errors import InputError
from kairosbuild.families.apt import Apt
from kairosbuild.families.below import flatten, flattened, look_at
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs, stored_outputs
from kairosbuild.recipe.fields import choice, flag, record, ref, source, text, texts

APT = Apt()
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
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = BaseSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: BaseSpec) -> tuple[str, ...]:
        """None: Debian is installed by its own dpkg; apt is needed to resolve only."""
        return ()

    def lock(self, spec: BaseSpec, locker: Locker) -> Locked:
        """The packages of a bootstrap, the layers of an image."""
        _one_of(spec)
        if debian := spec.debian:
            return APT.lock_bootstrap(
                debian.suite, debian.components, debian.security, debian.variant, debian.packages, locker
            )
        if spec.image:
            return _known(_lock_image(spec.image, locker), locker)
        return _known(_of_archive(locker), locker)

    def build(self, task: Task) -> Outputs:
        """One canonical layer."""
        if task.spec.debian:
            return APT.bootstrap(task)
        if task.spec.tarball:
            tar, index = flatten([task.source_path("tarball", "")], task.scratch, task.epoch)
            return layer_outputs(task, tar, index)
        layers = [Blob(m.digest, m.size) for m in task.locked.materials]
        if task.spec.archive:
            layers = [task.inputs["archive"][0].outputs["file"]]
        made = flattened(task, layers)
        return stored_outputs(task, LayerRef(made["layer"], made["index"]))


def _one_of(spec: BaseSpec) -> None:
    given = [name for name in ("debian", "image", "tarball", "archive") if getattr(spec, name)]
    if len(given) != 1:
        raise InputError(
            f"a base is one of debian, image, tarball and archive, not {' and '.join(given) or 'none'}",
            reason="base-source",
        )


def _of_archive(locker: Locker) -> Locked:
    """The file of a node that fetches one: it is known before it is built."""
    return next((Locked({}, locked.materials) for _, _, locked in locker.upstream("archive")), UNLOCKED)


def _known(locked: Locked, locker: Locker) -> Locked:
    """With what the layers say they are, so that others know what they stand on."""
    if not locked.materials:
        return locked
    files = [locker.fetch(m.uri, digest=m.digest, size=m.size) for m in locked.materials]
    return Locked({**locked.data, "system": look_at(files).json()}, locked.materials)


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
