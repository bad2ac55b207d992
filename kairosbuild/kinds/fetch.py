"""Kind `fetch`: a file from a URL, known by its digest before it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.graph.node import Locked, Locker, Material, Outputs, Task
from kairosbuild.recipe.fields import digest, integer, text


@dataclass(frozen=True, slots=True)
class FetchSpec:
    """A download."""

    url: str = text(
        "Where the file is.",
        pattern=r"https?://[^\s/]\S*|file:\S+|debian(-security)?:\S+",
        example="https://example.com/tool-1.2.tar.gz",
    )
    sha256: str = digest("What the file has to be.")
    size: int = integer("Its size in bytes; asked for when it is not given.", 0)


class Fetch:
    """The file as it is."""

    name: ClassVar[str] = "fetch"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = FetchSpec
    produces: ClassVar[str] = "file"

    def tools(self, spec: FetchSpec) -> tuple[str, ...]:
        """None."""
        return ()

    def lock(self, spec: FetchSpec, locker: Locker) -> Locked:
        """Pin the file; it is fetched here only to learn its size."""
        size = spec.size or locker.fetch(spec.url, digest=spec.sha256).stat().st_size
        return Locked(materials=(Material(spec.url, spec.sha256, size),))

    def build(self, task: Task) -> Outputs:
        """The fetched file, which is in the store by now."""
        (material,) = task.locked.materials
        return {"file": Blob(material.digest, material.size)}
