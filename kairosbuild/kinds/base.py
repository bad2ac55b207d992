"""Kind `base`: the bottom of a stack, as one layer: bootstrapped from an archive, or an image, or a tar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.families.apt import Apt
from kairosbuild.families.below import flatten, flattened, look_at
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs, stored_outputs
from kairosbuild.recipe.fields import choice, flag, record, ref, source, text, texts
from kairosbuild.sources.images import resolve

APT = Apt()


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
    version: ClassVar[int] = 3
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
    found = resolve(image, locker.platform, locker.fetch)
    layers = tuple(Material(f"{found.place}@{one.digest}", one.digest, one.size) for one in found.layers)
    return Locked({"manifest": found.manifest}, layers)
