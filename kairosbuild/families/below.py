"""What a stack is made of before it is built: out of the locks of its nodes, and the image at its bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.families.family import Below, Family, System
from kairosbuild.families.table import TABLE, databases, recognised
from kairosbuild.graph.node import Locked, Locker, Material, Outputs

RELEASES = ("usr/lib/os-release", "etc/os-release")
_KINDS = ("base", "packages")


class Maker(Protocol):
    """What making a layer takes: a `Task` has it, and so has a `Locker`."""

    epoch: int

    @property
    def scratch(self) -> Path:
        """A private folder on the store's filesystem."""

    def path(self, blob: Blob) -> Path:
        """Where a stored blob can be read."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""

    def put_file(self, path: Path) -> Blob:
        """Store this scratch file by moving it."""

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        """Do work once for this preimage, ever."""


def below(upstream: Sequence[tuple[str, Any, Locked]]) -> Below:
    """What the node that `upstream` names is made of. Raises InputError (`packages-upstream`)."""
    ((kind, _, locked),) = upstream
    if kind not in _KINDS or "system" not in locked.data:
        raise InputError(
            f"what is installed in a node of kind {kind!r} is not known: nothing can be put on it",
            reason="packages-upstream",
            hint="put `packages` on a base or on other packages, and the rest on top",
        )
    data = locked.data
    before = data.get("below", {"layers": [], "packages": [], "removed": []})
    installed = {package["name"] for package in data.get("packages", ())}
    own = locked.materials
    layers = tuple(map(_material, before["layers"])) if "packages" in data else own
    return Below(
        System.of(data["system"]),
        layers,
        (*map(_material, before["packages"]), *(own if "packages" in data else ())),
        (frozenset(before["removed"]) | frozenset(data.get("removed", ()))) - installed,
        tuple(data.get("repositories", ())),
    )


def json(below: Below) -> dict[str, Any]:
    """What of it a lock keeps, for those who are on top."""
    return {
        "layers": [_json(one) for one in below.layers],
        "packages": [_json(one) for one in below.packages],
        "removed": sorted(below.removed),
    }


def family_of(below: Below) -> Family:
    """The family of a stack. Raises InputError (`packages-upstream`)."""
    if below.system.family not in TABLE:
        raise InputError(
            "the image below has no database of a package manager: nothing can be installed onto it",
            reason="packages-upstream",
            hint=f"looked for {', '.join(databases())}",
        )
    return TABLE[below.system.family]


def look_at(layers: Sequence[Path]) -> System:
    """What the layers of an image, bottom to top, say they are."""
    from kairosbuild.sources.installed import look, os_release

    wanted = {*databases(), *RELEASES}
    found = look(layers, lambda path: path in wanted)
    fields = os_release(b"\n".join(found.get(path, b"") for path in RELEASES))
    like = tuple(fields.get("ID_LIKE", "").split())
    name = fields.get("ID", "")
    return System(
        recognised(found, (name, *like)),
        name,
        like,
        fields.get("VERSION_ID", ""),
        fields.get("VERSION_CODENAME", ""),
    )


def files_below(below: Below, locker: Locker, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of the image at the bottom: keys, databases."""
    from kairosbuild.sources.installed import look

    return look([locker.fetch(m.uri, digest=m.digest, size=m.size) for m in below.layers], wanted)


def tree(below: Below, locker: Locker) -> Blob:
    """The image at the bottom as one layer: a root for a resolver that it brings itself.

    It is the layer that the base yields when it is built, and made once for both.
    """
    for one in below.layers:
        locker.fetch(one.uri, digest=one.digest, size=one.size)
    return flattened(locker, [Blob(one.digest, one.size) for one in below.layers])["layer"]


def flattened(maker: Maker, tars: Sequence[Blob]) -> Outputs:
    """Any tars, bottom to top, as one canonical layer and its index; each is distrusted."""

    def make() -> Outputs:
        tar, index = flatten([maker.path(blob) for blob in tars], maker.scratch, maker.epoch)
        return {"layer": maker.put_file(tar), "index": maker.put_bytes(index)}

    preimage = {"layers": [blob.digest for blob in tars], "epoch": maker.epoch}
    return maker.derive("flattened", 1, preimage, make)


def flatten(tars: Sequence[Path], scratch: Path, epoch: int) -> tuple[Path, bytes]:
    """The same, as a file in the scratch folder and the bytes of its index."""
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.merge import merge
    from kairosbuild.oci.reader import normalise

    stack = []
    for number, tar in enumerate(tars):
        made = scratch / f"layer-{number}.tar"
        with tar.open("rb") as stream, made.open("wb") as out:
            index = normalise(stream, out, epoch, scratch=scratch)
        stack.append((made, index))
    if len(stack) == 1:
        return stack[0]
    merged = scratch / "base.tar"
    with merged.open("wb") as out:
        rows = merge([(tar, Index.loads(index)) for tar, index in stack], out, epoch)
    for tar, _ in stack:
        tar.unlink()
    return merged, rows


def _json(material: Material) -> dict[str, Any]:
    return {"uri": material.uri, "digest": material.digest, "size": material.size}


def _material(value: Mapping[str, Any]) -> Material:
    return Material(value["uri"], value["digest"], value["size"])
