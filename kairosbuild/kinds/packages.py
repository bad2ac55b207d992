"""Kind `packages`: Debian packages installed onto what is below; the difference is the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import stack_of, stored_outputs
from kairosbuild.recipe.fields import flag, ref, text, texts


@dataclass(frozen=True, slots=True)
class PackagesSpec:
    """What to install onto what."""

    on: str = ref("The node whose stack they are installed onto.", accepts=("layer",))
    install: tuple[str, ...] = texts("Packages: NAME, NAME=VERSION or NAME/SUITE.", (), example="systemd")
    remove: tuple[str, ...] = texts("Packages of the stack below to remove.", ())
    recommends: bool = flag("Install what the packages recommend, too.")
    suite: str = text("The release they come from; without it, that of the base.", "")
    components: tuple[str, ...] = texts("Components of the archive; without it, those of the base.", ())


class Packages:
    """See the module."""

    name: ClassVar[str] = "packages"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = PackagesSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: PackagesSpec) -> tuple[str, ...]:
        """None: the stack's own dpkg installs; apt is needed to resolve only."""
        return ()

    def lock(self, spec: PackagesSpec, locker: Locker) -> Locked:
        """apt's plan for what is missing, as exact files.

        `below` lists what the stack below is made of, for those who are on top of this.
        """
        from kairosbuild.sources import apt
        from kairosbuild.sources.debian import open_archive

        if not spec.install and not spec.remove:
            raise InputError("there is nothing to install and nothing to remove", reason="packages-empty")
        below = _below(locker.upstream("on"))
        found, codename = _images(below, locker)
        suites = _suites(spec, below, codename)
        architecture = locker.platform.split("/")[1]
        archive = open_archive(suites, architecture, locker.fetch)
        status = apt.joined([found, apt.status(_paragraphs(below, archive, locker))])
        request = apt.Request(spec.install, spec.remove, spec.recommends, _without(status, below.removed))
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
        data = {
            "archives": [suite.json() for suite in suites],
            "packages": [package.json() for package in plan.packages],
            "steps": [[step, list(names)] for step, names in plan.steps],
            "removed": sorted(plan.removed),
            "below": {
                "files": [_json(material) for material in below.materials],
                "removed": sorted(below.removed),
            },
        }
        return Locked(data, tuple(Material(p.uri, p.digest, p.size) for p in plan.packages))

    def build(self, task: Task) -> Outputs:
        """Let the stack's dpkg install them, and keep what changed."""
        from kairosbuild.sources import dpkg

        below = stack_of(task, task.inputs["on"])
        data = task.locked.data
        script = dpkg.install_script(data["steps"], data["removed"])
        inputs = {
            dpkg.file_name(package["name"]): Blob(package["digest"], package["size"])
            for package in data["packages"]
        }
        done = task.execute(
            Action(
                ("/bin/sh", "/in/install.sh"),
                tuple(one.layer for one in below),
                {**inputs, "install.sh": task.put_bytes(script.encode())},
                env=dpkg.ENVIRONMENT,
                cwd="/",
                layer=True,
                drop=dpkg.DROPPED,
                platform=task.platform,
            )
        )
        assert done.layer is not None
        return stored_outputs(task, done.layer, below)


@dataclass(frozen=True, slots=True)
class _Below:
    """What the stack below is made of: debs and image layers in their order, and what was removed again."""

    materials: tuple[Material, ...]
    removed: frozenset[str]
    archives: tuple[Any, ...]


def _below(upstream: Sequence[tuple[str, Any, Locked]]) -> _Below:
    ((kind, _, locked),) = upstream
    if kind != "packages" and (kind != "base" or not locked.materials):
        raise InputError(
            f"what is installed in a node of kind {kind!r} is not known: nothing can be put on it",
            reason="packages-upstream",
            hint="put `packages` on a base or on other packages, and the rest on top",
        )
    before = locked.data.get("below", {"files": [], "removed": []})
    installed = {package["name"] for package in locked.data.get("packages", ())}
    removed = (frozenset(before["removed"]) | frozenset(locked.data.get("removed", ()))) - installed
    files = tuple(Material(one["uri"], one["digest"], one["size"]) for one in before["files"])
    return _Below(files + locked.materials, removed, tuple(locked.data.get("archives", ())))


def _images(below: _Below, locker: Locker) -> tuple[bytes, str]:
    """dpkg's database in the image layers below, and the name of the release they are."""
    from kairosbuild.sources import installed

    layers = [m for m in below.materials if not m.uri.endswith(".deb")]
    if not layers:
        return b"", ""
    found = installed.look([locker.fetch(m.uri, digest=m.digest, size=m.size) for m in layers])
    if installed.STATUS not in found:
        raise InputError(
            "the image below has no database of dpkg: nothing can be installed onto it with apt",
            reason="packages-upstream",
        )
    return found[installed.STATUS], installed.codename(found)


def _suites(spec: PackagesSpec, below: _Below, codename: str) -> tuple[Any, ...]:
    from kairosbuild.sources.debian import Suite, suites

    if below.archives and not spec.suite and not spec.components:
        return tuple(map(Suite.of, below.archives))
    first = Suite.of(below.archives[0]) if below.archives else Suite("debian", codename)
    name = spec.suite or first.name
    if not name:
        raise InputError(
            "the image below does not say which release it is", reason="packages-suite", hint="set `suite`"
        )
    return suites(name, components=spec.components or first.components)


def _paragraphs(below: _Below, archive: Any, locker: Locker) -> list[Mapping[str, str]]:
    """What each deb below says of itself: by the index where it still has it, else by the file."""
    from kairosbuild.sources.deb import control
    from kairosbuild.sources.stanza import fields

    found = []
    for material in below.materials:
        if not material.uri.endswith(".deb"):
            continue
        known = archive.index.at(material.uri, material.digest)
        if known is None:
            file = locker.fetch(material.uri, digest=material.digest, size=material.size)
            known = fields(control(file)["control"])
        found.append(known)
    return found


def _without(status: bytes, removed: frozenset[str]) -> bytes:
    kept = (p for p in status.split(b"\n\n") if p.strip(b"\n"))
    return b"".join(
        p.strip(b"\n") + b"\n\n"
        for p in kept
        if p.lstrip(b"\n").partition(b"\n")[0][9:].decode() not in removed
    )


def _json(material: Material) -> dict[str, Any]:
    return {"uri": material.uri, "digest": material.digest, "size": material.size}
