"""Kind `kernel`: a kernel and its modules as a layer of their own, all beneath lib/modules/VERSION.

No maintainer script runs and /boot stays empty: what boots is made from this folder (Linux and systemd
agree on `vmlinuz` in it, see kernel-install(8)). Which version it is, the package says, never this machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError
from kairosbuild.families.below import below, family_of
from kairosbuild.families.family import Below, KernelRequest, System
from kairosbuild.families.table import TABLE
from kairosbuild.graph.node import Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.recipe.fields import ref, text, texts

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

_MODULES = re.compile(r"((?:usr/)?lib/modules/)([^/]+)")
_FROM_BOOT = ("vmlinuz", "config", "System.map")


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Which kernel."""

    package: str = text(
        "The package; one that only names the newest kernel will do.", example="linux-image-cloud-amd64"
    )
    version: str = text("Hold it at this version of the package.", "", example="6.12.48-1")
    on: str = ref(
        "The base or packages whose distribution and release it is taken from; without it, Debian.",
        "", accepts=("layer",),
    )  # fmt: skip
    release: str = text("The release it is taken from; without it, that of the base.", "", example="trixie")
    repositories: tuple[str, ...] = texts(
        "Components or repositories of it; without them, those of the base.", ()
    )


class Kernel:
    """See the module."""

    name: ClassVar[str] = "kernel"
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = KernelSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: KernelSpec) -> tuple[str, ...]:
        """None."""
        return ()

    def lock(self, spec: KernelSpec, locker: Locker) -> Locked:
        """The real kernel's package behind the one that was named, and what its modules are in."""
        upstream = locker.upstream("on")
        found = below(upstream) if upstream else Below(System("apt", "debian"))
        family = family_of(found)
        request = KernelRequest(spec.package, spec.version, spec.release, spec.repositories)
        locked = family.lock_kernel(request, found, locker)
        return Locked({**locked.data, "family": family.name}, locked.materials)

    def build(self, task: Task) -> Outputs:
        """Unpack, and move what is in /boot to its modules."""
        import tempfile

        from kairosbuild.oci.layer import write_layer
        from kairosbuild.sources.deb import with_parents

        family = TABLE[task.locked.data["family"]]
        files = [task.path(Blob(m.digest, m.size)) for m in task.locked.materials]
        made = task.scratch / "kernel.tar"
        with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
            items = family.unpack(files, spool, _wanted)
            modules, release = _release(items)
            moved = [_placed(item, modules, release) for item in items]
            placed = {item[0].path: item for item in moved if item}
            if f"{modules}{release}/vmlinuz" not in placed:
                raise NodeError(
                    f"the package has no kernel for its modules {release}", reason="kernel-package"
                )
            index = write_layer(with_parents(placed), out, task.epoch)
        image = next(p for p in task.locked.data["packages"] if p["name"] == task.locked.data["image"])
        about = {"version": release, "package": image["name"], "package version": image["version"]}
        return {**layer_outputs(task, made, index), "kernel": task.put_bytes(dumps(about))}


def _wanted(path: str) -> bool:
    return path.startswith("boot/") or _MODULES.match(path) is not None


def _release(items: list[Item]) -> tuple[str, str]:
    """Where the modules are and the version that they are for: the name of their folder."""
    found = {match.groups() for entry, _ in items if (match := _MODULES.match(entry.path))}
    if len(found) != 1:
        names = sorted(release for _, release in found)
        raise NodeError(f"the package has modules for {names or 'no kernel'}", reason="kernel-package")
    modules, release = found.pop()
    return modules, release


def _placed(item: Item, modules: str, release: str) -> Item | None:
    """Where it goes; None for what stays out."""
    entry, content = item
    if entry.path.startswith("boot/"):
        name = entry.path.removeprefix("boot/").partition("-")[0]  # what follows is the version, or a flavour
        return (replace(entry, path=f"{modules}{release}/{name}"), content) if name in _FROM_BOOT else None
    if entry.path in (f"{modules}{release}/build", f"{modules}{release}/source"):
        return None
    return item
