"""Kind `rootfs`: an image's tree as one file, for other people's tools: erofs, squashfs or tar.

An erofs has its dm-verity tree behind it, as layers have; its root hash is an annotation of the artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.merged import merged, single
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.recipe.fields import choice, ref, text

_SQUASH = (
    "sqfstar -quiet -no-progress -comp zstd -Xcompression-level 6 "
    "-root-mode 0755 -root-uid 0 -root-gid 0 -default-mode 0755 -default-uid 0 -default-gid 0 "
    "/out/root < /in/root"
)
"""What a tar only implies, the root itself above all, would be everybody's to write to."""


@dataclass(frozen=True, slots=True)
class RootfsSpec:
    """A tree in one file."""

    image: str = ref("The image whose tree it is.", accepts=("image",))
    format: str = choice("What it is.", ("erofs", "squashfs", "tar"), "erofs")
    entry: str = text("Its name.", "os", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Rootfs:
    """See the module."""

    name: ClassVar[str] = "rootfs"
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = RootfsSpec
    produces: ClassVar[str] = "file"

    def tools(self, spec: RootfsSpec) -> tuple[str, ...]:
        """mkfs.erofs; sqfstar."""
        return {"erofs": ("image",), "squashfs": ("media",), "tar": ()}[spec.format]

    def lock(self, spec: RootfsSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Merge the layers, make the filesystem."""
        spec: RootfsSpec = task.spec
        stack = stack_of_image(task)
        annotations: dict[str, str] = {}
        if spec.format == "erofs":
            sealed = single(task, stack).sealed[0]
            made = sealed.blob
            annotations = {
                "root-hash": sealed.verity.root_hash,
                "hash-offset": str(sealed.verity.hash_offset),
            }
        else:
            made = merged(task, stack).layer
        if spec.format == "squashfs":
            made = _squashed(task, made)
        files = (File(f"{spec.entry}.{spec.format}", f"rootfs.{spec.format}", made),)
        return {"file": made, "artifact": task.put_bytes(document("rootfs", files, annotations))}


def _squashed(task: Task, tar: Blob) -> Blob:
    command = ("/bin/sh", "-euc", _SQUASH)
    action = Action(command, (task.tools("media"),), {"root": tar}, ("root",), platform=task.platform)
    return task.execute(action).outputs["root"]
