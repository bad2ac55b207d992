"""What a registry offers to a machine: an image's boot forms, found from a reference and held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import Reference
from kairosbuild.node.registry import Blob, Manifest, Repository
from kairosbuild.node.uki import Layer

BOOT = "application/vnd.kairosbuild.boot.v1"
"""The artifactType of a kernel image and all its layers in their boot form."""
UKI = "application/vnd.kairosbuild.uki"
FORM = "application/vnd.kairosbuild.layer.erofs"

Verify = Callable[[Repository, Manifest], None]
"""Raises Problem unless this manifest may be used; called before anything that it names is."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An image that can be booted: digests of its manifest ("" when not known) and of its boot artifact."""

    reference: Reference
    manifest: str
    image: str  # what its configuration's digest has to be, "" when only the kernel image can say
    boot: str
    uki: Blob
    forms: Mapping[str, Blob]

    def form(self, layer: Layer) -> Blob:
        """The blob of a layer. Raises Problem `boot-incomplete`."""
        if layer.root_hash not in self.forms:
            raise Problem(
                f"the boot artifact {self.boot} has no layer {layer.root_hash}",
                reason="boot-incomplete",
                hint="publish the image again",
            )
        return self.forms[layer.root_hash]


def find(reference: Reference, repository: Repository, platform: str, verify: Verify) -> Offer:
    """What a reference comes to, be it an image or its boot artifact. Raises Problem `not-bootable`, …"""
    found = repository.manifest(reference.version, platform)
    if found.artifact_type == BOOT:
        verify(repository, found)
        return _offer(reference, found, manifest=found.subject, image="")
    if found.artifact_type:
        raise Problem(
            f"{reference} is an artifact of type {found.artifact_type}",
            reason="not-bootable",
            hint="name an image, or the boot artifact of one",
        )
    for digest in repository.referrers(found.digest, BOOT, "" if reference.digest else f"{reference.tag}-"):
        boot = repository.manifest(digest)
        if boot.subject == found.digest and boot.artifact_type == BOOT:
            verify(repository, boot)
            return _offer(reference, boot, manifest=found.digest, image=found.config.digest)
    raise Problem(
        f"{reference} is published without its boot forms",
        reason="not-bootable",
        hint="publish a node of kind boot together with the image",
    )


def _offer(reference: Reference, boot: Manifest, *, manifest: str, image: str) -> Offer:
    kernels = [one for one in boot.layers if one.media_type == UKI]
    if len(kernels) != 1:
        raise Problem(f"the boot artifact {boot.digest} has no kernel image", reason="boot-incomplete")
    forms = {one.title: one for one in boot.layers if one.media_type == FORM}
    return Offer(reference, manifest, image, boot.digest, kernels[0], forms)
