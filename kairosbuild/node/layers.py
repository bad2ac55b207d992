"""The layer store: a folder of sealed layers named by their root hashes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from kairosbuild.node import durable, verity
from kairosbuild.node.problem import Problem
from kairosbuild.node.uki import Layer

_NAME = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.[0-9a-f]{64}\.part")


class Layers:
    """The layers filesystem, mounted somewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, layer: Layer) -> Path:
        """Where a layer is, or would be."""
        return self.folder / layer.root_hash

    def part(self, layer: Layer) -> Path:
        """Where a layer grows while it is fetched; what is there outlives a power cut and is used again."""
        return self.folder / f".{layer.root_hash}.part"

    def missing(self, wanted: Iterable[Layer]) -> list[Layer]:
        """Those of these that are not there."""
        return [one for one in dict.fromkeys(wanted) if not self._there(one)]

    def damaged(self, wanted: Iterable[Layer]) -> list[Layer]:
        """Those of these that are missing or not what they are called. Reads everything."""
        return [
            one
            for one in dict.fromkeys(wanted)
            if not verity.is_intact(self.path(one), one.root_hash, one.hash_offset)
        ]

    def admit(self, layer: Layer) -> None:
        """Take the fetched part in, under its name. Raises Problem `wrong-layer`, and the part is gone."""
        part = self.part(layer)
        if not verity.is_intact(part, layer.root_hash, layer.hash_offset):
            part.unlink(missing_ok=True)
            raise Problem(
                f"what was fetched for layer {layer.root_hash} is another layer",
                reason="wrong-layer",
                hint="the boot artifact in the registry is not whole; publish the image again",
            )
        with part.open("rb") as file:
            durable.sync(file.fileno())
        durable.move(part, self.path(layer))

    def collect(self, kept: Iterable[Layer]) -> list[str]:
        """Remove what none of these is, and what was never finished; the names of the layers that went."""
        names = {one.root_hash for one in kept}
        gone = sorted(one.name for one in self.folder.iterdir() if _NAME.fullmatch(one.name))
        gone = [name for name in gone if name not in names]
        for name in gone:
            (self.folder / name).unlink()
        for part in self.folder.iterdir():
            if _PART.fullmatch(part.name):
                part.unlink()
        durable.sync_folder(self.folder)
        return gone

    def room(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def _there(self, layer: Layer) -> bool:
        path = self.path(layer)
        return path.is_file() and path.stat().st_size > layer.hash_offset
