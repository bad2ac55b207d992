"""Kind `kernel`: a kernel and its modules as a layer of their own, all beneath /usr/lib/modules/VERSION.

No maintainer script runs and /boot stays empty: what boots is made from this folder (Linux and systemd
agree on `vmlinuz` in it, see kernel-install(8)). Which version it is, the package says, never this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.graph.node import Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.recipe.fields import ref, text, texts

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.debian import Archive
    from kairosbuild.sources.stanza import Package

_REAL = re.compile(r"linux-image-(\d[a-z0-9.+~-]*?)(-unsigned)?$")
_PARTS = re.compile(r"linux-(image|modules|binary|base)-[a-z0-9.+~-]*\d")
_MODULES = "usr/lib/modules/"
_FROM_BOOT = ("vmlinuz", "config", "System.map")


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Which kernel."""

    package: str = text(
        "The package; one that only names the newest kernel will do.", example="linux-image-cloud-amd64"
    )
    version: str = text("Hold it at this version of the package.", "", example="6.12.48-1")
    on: str = ref("The base or packages whose release it is taken from.", "", accepts=("layer",))
    suite: str = text("The release it is taken from.", "", example="trixie")
    components: tuple[str, ...] = texts("Components of the archive.", ())


class Kernel:
    """See the module."""

    name: ClassVar[str] = "kernel"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = KernelSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: KernelSpec) -> tuple[str, ...]:
        """None."""
        return ()

    def lock(self, spec: KernelSpec, locker: Locker) -> Locked:
        """The real kernel's package behind the one that was named, and what its modules are in."""
        from kairosbuild.sources.debian import open_archive

        archive = open_archive(_suites(spec, locker), locker.platform.split("/")[1], locker.fetch)
        image = _real(spec, archive)
        packages = _with_parts(image, archive)
        return Locked(
            {"packages": [package.json() for package in packages], "image": image.name},
            tuple(Material(package.uri, package.digest, package.size) for package in packages),
        )

    def build(self, task: Task) -> Outputs:
        """Unpack, and move what is in /boot to its modules."""
        import tempfile

        from kairosbuild.oci.layer import write_layer
        from kairosbuild.sources.deb import unpack, with_parents

        debs = [task.path(Blob(m.digest, m.size)) for m in task.locked.materials]
        made = task.scratch / "kernel.tar"
        with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
            items = unpack(debs, spool, lambda path: path.startswith((_MODULES, "boot/")))
            release = _release(items)
            moved = [_placed(item, release) for item in items]
            placed = {item[0].path: item for item in moved if item}
            if f"{_MODULES}{release}/vmlinuz" not in placed:
                raise NodeError(
                    f"the package has no kernel for its modules {release}", reason="kernel-package"
                )
            index = write_layer(with_parents(placed), out, task.epoch)
        image = next(p for p in task.locked.data["packages"] if p["name"] == task.locked.data["image"])
        about = {"version": release, "package": image["name"], "package version": image["version"]}
        return {**layer_outputs(task, made, index), "kernel": task.put_bytes(dumps(about))}


def _suites(spec: KernelSpec, locker: Locker) -> tuple[Any, ...]:
    from kairosbuild.sources.debian import Suite, suites

    given = [
        Suite.of(one) for _, _, locked in locker.upstream("on") for one in locked.data.get("archives", ())
    ]
    if given and not spec.suite and not spec.components:
        return tuple(given)
    name = spec.suite or (given[0].name if given else "")
    if not name:
        raise InputError(
            "a kernel needs to know which release it comes from",
            reason="kernel-suite",
            hint="set `suite`, or `on` a node that is bootstrapped from one",
        )
    return suites(name, components=spec.components or (given[0].components if given else ("main",)))


def _real(spec: KernelSpec, archive: Archive) -> Package:
    """Follow dependencies from the package named to one that has a kernel in it."""
    from kairosbuild.sources.debian import unknown
    from kairosbuild.sources.stanza import alternatives

    name, seen = spec.package, set[str]()
    while name not in seen:
        seen.add(name)
        if name not in archive.index:
            raise unknown(name, archive.index)
        candidates = archive.index.candidates(name)
        if name == spec.package and spec.version:
            candidates = [one for one in candidates if one[0].version == spec.version]
            if not candidates:
                have = ", ".join(p.version for p, _ in archive.index.candidates(name))
                raise InputError(
                    f"no suite has {name} in version {spec.version}",
                    reason="package-unknown",
                    hint=f"there is {have}",
                )
        package, found = candidates[0]
        if _REAL.match(name):
            return package
        nexts = [n for clause in alternatives(found.get("Depends", "")) for n in clause if _REAL.match(n)]
        name = nexts[0] if nexts else name
    raise InputError(
        f"{spec.package} neither is a kernel nor depends on one",
        reason="kernel-package",
        hint="linux-image-amd64",
    )


def _with_parts(image: Package, archive: Archive) -> list[Package]:
    """The image and, where a release splits it, the packages of the same version that have the rest."""
    from kairosbuild.sources.stanza import alternatives

    found: dict[str, Package] = {}
    todo = [image.name]
    while todo:
        name = todo.pop()
        if name in found or name not in archive.index:
            continue
        for package, fields in archive.index.candidates(name):
            if package.version == image.version:
                found[name] = package
                relations = alternatives(fields.get("Depends", ""))
                todo += [one for clause in relations for one in clause if _PARTS.match(one)]
                break
    return [found[name] for name in sorted(found)]


def _release(items: list[Item]) -> str:
    """The version that the modules are for: the name of their folder."""
    found = {
        entry.path.removeprefix(_MODULES).partition("/")[0]
        for entry, _ in items
        if entry.path.startswith(_MODULES)
    }
    if len(found) != 1:
        raise NodeError(
            f"the package has modules for {sorted(found) or 'no kernel'}", reason="kernel-package"
        )
    return found.pop()


def _placed(item: Item, release: str) -> Item | None:
    """Where it goes; None for what stays out."""
    entry, content = item
    if entry.path.startswith("boot/"):
        name = entry.path.removeprefix("boot/").removesuffix(f"-{release}")
        return (replace(entry, path=f"{_MODULES}{release}/{name}"), content) if name in _FROM_BOOT else None
    if entry.path in (f"{_MODULES}{release}/build", f"{_MODULES}{release}/source"):
        return None
    return item
