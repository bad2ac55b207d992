"""Debian and what descends from it: apt resolves (out of the tools tree), the stack's own dpkg installs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.families.below import files_below
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request, System
from kairosbuild.families.steps import materials
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Outputs, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources import apt
    from kairosbuild.sources.debian import Archive, Suite
    from kairosbuild.sources.stanza import Package

_STATUS = "var/lib/dpkg/status"
_UBUNTU_KEYS = "usr/share/keyrings/ubuntu-archive-keyring.gpg"
_REAL = re.compile(r"linux-image-(\d[a-z0-9.+~-]*?)(-unsigned)?$")
_PARTS = re.compile(r"linux-(image|modules|binary|base)-[a-z0-9.+~-]*\d")


class Apt:
    """See the module."""

    name: ClassVar[str] = "apt"
    databases: ClassVar[tuple[str, ...]] = (_STATUS,)
    distributions: ClassVar[frozenset[str]] = frozenset({"debian", "ubuntu"})

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """apt's plan for what is missing, as exact files."""
        from kairosbuild.sources import apt

        suites = _suites(request, below, locker)
        archive = _open(suites, locker, below)
        known = apt.joined([_image_status(below, locker), apt.status(_paragraphs(below, archive, locker))])
        wanted = apt.Request(request.install, request.remove, request.weak, _without(known, below.removed))
        plan = _resolve(wanted, archive, locker)
        data = {
            "packages": [package.json() for package in plan.packages],
            "steps": [[step, list(names)] for step, names in plan.steps],
            "parts": _parts(request, plan, archive, known),
            "removed": sorted(plan.removed),
            "repositories": [suite.json() for suite in suites],
        }
        return Locked(data, materials(plan.packages))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Let the stack's dpkg take apt's steps."""
        from kairosbuild.sources import dpkg

        data = part.data
        names = [package["name"] for package in data["packages"]]
        script = dpkg.install_script(_steps(data["steps"], frozenset(names)), data["removed"])
        blobs = [Blob(package["digest"], package["size"]) for package in data["packages"]]
        return _step(task, script, names, blobs, [one.layer for one in below])

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The real kernel's package behind the one that was named, and what its modules are in."""
        from kairosbuild.families.apt_drivers import headers

        plain = Request((), release=request.release, repositories=request.repositories)
        archive = _open(_suites(plain, below, locker), locker, below)
        image = _real(request, archive)
        packages = _with_parts(image, archive)
        found, compiler = headers(image, archive) if request.headers else ([], "")
        data = {
            "packages": [package.json() for package in packages],
            "image": image.name,
            "headers": [package.json() for package in found],
            "compiler": compiler,
            "repositories": [release.suite.json() for release in archive.releases],
        }
        return Locked(data, materials([*packages, *found]))

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """What the archive of the kernel has of it."""
        from kairosbuild.families.apt_drivers import lock

        return lock(request, kernel, locker)

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The files of these debs over merged /usr."""
        from kairosbuild.sources.deb import unpack

        return unpack(files, spool, keep)

    # -- a base out of nothing ---------------------------------------------------------------------

    def lock_bootstrap(
        self, suite: str, components: Sequence[str], security: bool, variant: str, more: Sequence[str],
        locker: Locker,
    ) -> Locked:  # fmt: skip
        """The packages of a Debian: essential ones, or those of priority `required`, and apt."""
        from kairosbuild.sources import apt
        from kairosbuild.sources.debian import suites

        wanted = suites(suite, components=components, security=security)
        archive = _open(wanted, locker)
        names = set(archive.index.having("Essential", "yes"))
        if variant == "required":
            names |= set(archive.index.having("Priority", "required"))
        if variant != "essential":
            names.add("apt")
        plan = _resolve(apt.Request(tuple(sorted(names | set(more)))), archive, locker)
        packages = sorted(plan.packages, key=lambda package: package.name)
        data = {
            "packages": [package.json() for package in packages],
            "repositories": [one.json() for one in wanted],
            "system": System(self.name, "debian", codename=suite).json(),
        }
        return Locked(data, materials(packages))

    def bootstrap(self, task: Task) -> Outputs:
        """Unpack everything with its owners, then let dpkg install it all over again, and keep the sum."""
        from kairosbuild.graph.stack import layer_outputs
        from kairosbuild.oci.index import Index
        from kairosbuild.oci.merge import merge
        from kairosbuild.sources import dpkg

        names = [package["name"] for package in task.locked.data["packages"]]
        blobs = [Blob(material.digest, material.size) for material in task.locked.materials]
        layer, index = _unpacked(task, [task.path(blob) for blob in blobs])
        done = task.execute(_step(task, dpkg.bootstrap_script(names), names, blobs, [layer]))
        assert done.layer is not None
        stack = [
            (task.path(tar), Index.loads(task.path(rows).read_bytes()))
            for tar, rows in ((layer, index), (done.layer.layer, done.layer.index))
        ]
        made = task.scratch / "base.tar"
        with made.open("wb") as out:
            rows = merge(stack, out, task.epoch)
        return layer_outputs(task, made, rows)


# -- resolving -------------------------------------------------------------------------------------


def _suites(request: Request, below: Below, locker: Locker) -> tuple[Suite, ...]:
    from kairosbuild.sources.debian import Suite, suites

    given = tuple(map(Suite.of, below.repositories))
    if given and not request.release and not request.repositories:
        return given
    name = request.release or (given[0].name if given else below.system.codename)
    if not name:
        raise InputError(
            "nothing says which release the packages come from",
            reason="packages-release",
            hint="set `release`, or `on` a node that is of one",
        )
    parts = request.repositories or (given[0].components if given else ())
    if below.system.id == "ubuntu":
        return _ubuntu(name, parts or ("main", "universe"), locker.platform.split("/")[1])
    return suites(name, components=parts or ("main",))


def _ubuntu(release: str, parts: tuple[str, ...], architecture: str) -> tuple[Suite, ...]:
    """The suites of an Ubuntu; all but its first architecture are on mirrors of their own."""
    from kairosbuild.sources.debian import Suite

    main, security = ("ubuntu", "ubuntu-security") if architecture == "amd64" else ("ubuntu-ports",) * 2
    return (
        Suite(main, release, parts),
        Suite(main, f"{release}-updates", parts),
        Suite(security, f"{release}-security", parts),
    )


def _open(wanted: Sequence[Suite], locker: Locker, below: Below | None = None) -> Archive:
    """Debian's keys are here; those of another distribution come with its base, which a digest pins."""
    from kairosbuild.sources.debian import open_archive

    architecture = locker.platform.split("/")[1]
    if below is None or below.system.id != "ubuntu":
        return open_archive(wanted, architecture, locker.fetch)
    keys = files_below(below, locker, lambda path: path == _UBUNTU_KEYS)
    if not keys:
        raise InputError(
            f"the base has no key that signs its packages: there is no /{_UBUNTU_KEYS}",
            reason="packages-keys",
            hint="a base image brings the keys of its distribution",
        )
    keyring = locker.path(locker.put_bytes(keys[_UBUNTU_KEYS]))
    return open_archive(wanted, architecture, locker.fetch, keyring=keyring)


def _resolve(request: apt.Request, archive: Archive, locker: Locker) -> apt.Plan:
    """Let apt plan, in its tools tree."""
    from kairosbuild.sources import apt

    apt.check(request, archive)
    action = Action(
        apt.command(request, locker.platform.split("/")[1]),
        (locker.tools("apt"),),
        {path: locker.put_bytes(data) for path, data in apt.inputs(request, archive).items()},
        outputs=(apt.PLAN, apt.COMPLAINT),
        platform=locker.platform,
    )
    left = {name: locker.path(blob).read_bytes() for name, blob in locker.execute(action).outputs.items()}
    return apt.read_plan(left[apt.PLAN], left[apt.COMPLAINT], request, archive)


def _parts(request: Request, plan: apt.Plan, archive: Archive, status: bytes) -> list[list[str]]:
    """The plan in parts. What replaces a package of the stack below is in the first."""
    from kairosbuild.families.parts import cut
    from kairosbuild.sources.stanza import alternatives

    needed: dict[str, list[str]] = {}
    followed = ("Pre-Depends", "Depends", *(("Recommends",) if request.weak else ()))
    for package in plan.packages:
        found = archive.index.at(package.uri, package.digest) or {}
        for virtual in chain(*alternatives(found.get("Provides", ""))):
            needed.setdefault(virtual, []).append(package.name)
        relations = (alternatives(found.get(field, "")) for field in followed)
        needed.setdefault(package.name, []).extend(chain(*chain(*relations)))
    there = {name.decode() for name in re.findall(rb"(?m)^Package: (.*)$", status)}
    names = [package.name for package in plan.packages]
    asked = [re.split("[=/:]", word)[0] for word in request.install]
    return cut(
        asked, set(names), lambda name: needed.get(name, ()), [name for name in names if name in there]
    )


def _steps(steps: Sequence[tuple[str, Sequence[str]]], names: frozenset[str]) -> list[tuple[str, list[str]]]:
    """Of apt's steps those of these packages. What they need was there before, or has its steps here."""
    kept = ((step, [name for name in some if name in names]) for step, some in steps)
    return [(step, some) for step, some in kept if some]


def _image_status(below: Below, locker: Locker) -> bytes:
    return files_below(below, locker, lambda path: path == _STATUS).get(_STATUS, b"")


def _paragraphs(below: Below, archive: Archive, locker: Locker) -> list[Mapping[str, str]]:
    """What each deb below says of itself: by the index where it still has it, else by the file."""
    from kairosbuild.sources.deb import control
    from kairosbuild.sources.stanza import fields

    found = []
    for material in below.packages:
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


# -- installing ------------------------------------------------------------------------------------


def _step(
    task: Task, script: str, names: Sequence[str], blobs: Sequence[Blob], root: Sequence[Blob]
) -> Action:
    """A layer step of dpkg over these debs."""
    from kairosbuild.sources import dpkg

    debs = {dpkg.file_name(name): blob for name, blob in zip(names, blobs, strict=True)}
    return Action(
        ("/bin/sh", "/in/install.sh"),
        tuple(root),
        {**debs, "install.sh": task.put_bytes(script.encode())},
        env=dpkg.ENVIRONMENT,
        cwd="/",
        layer=True,
        drop=dpkg.DROPPED,
        platform=task.platform,
    )


def _unpacked(task: Task, debs: list[Path]) -> tuple[Blob, Blob]:
    """The layer that dpkg begins with."""
    import tempfile

    from kairosbuild.oci.layer import Slice, write_layer
    from kairosbuild.sources import dpkg
    from kairosbuild.sources.deb import merged_links, unpack

    made = task.scratch / "unpacked.tar"
    with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
        items = {entry.path: (entry, content) for entry, content in unpack(debs, spool)}
        for entry, content in merged_links(task.platform.split("/")[1]):
            items.setdefault(entry.path, (entry, content))
        read = {}
        for path, (entry, content) in items.items():
            if path.startswith("usr/share/base-passwd/") and isinstance(content, Slice):
                spool.seek(content.offset)
                read[path] = spool.read(entry.size)
        index = task.put_bytes(write_layer(dpkg.seed(items.values(), read), out, task.epoch))
    return task.put_file(made), index


# -- kernels ---------------------------------------------------------------------------------------


def _real(request: KernelRequest, archive: Archive) -> Package:
    """Follow dependencies from the package named to one that has a kernel in it."""
    from kairosbuild.sources.debian import unknown
    from kairosbuild.sources.stanza import alternatives

    name, seen = request.package, set[str]()
    while name not in seen:
        seen.add(name)
        if name not in archive.index:
            raise unknown(name, archive.index)
        candidates = archive.index.candidates(name)
        if name == request.package and request.version:
            candidates = [one for one in candidates if one[0].version == request.version]
            if not candidates:
                have = ", ".join(p.version for p, _ in archive.index.candidates(name))
                raise InputError(
                    f"no suite has {name} in version {request.version}",
                    reason="package-unknown",
                    hint=f"there is {have}",
                )
        package, found = candidates[0]
        if _REAL.match(name):
            return package
        nexts = [n for clause in alternatives(found.get("Depends", "")) for n in clause if _REAL.match(n)]
        name = nexts[0] if nexts else name
    raise InputError(
        f"{request.package} neither is a kernel nor depends on one",
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
