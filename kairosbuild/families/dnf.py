"""Fedora, Rocky, AlmaLinux and their kin: the base's own dnf, 5 or 4, resolves and installs.

What it resolves over is what we fetched. Fedora and its kin sign packages, not repositories: every package that
was chosen is fetched while it is locked, and refused unless a key that the base brings signed it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.families import rpms
from kairosbuild.families.below import files_below
from kairosbuild.families.dnf_scripts import DROPPED, INSTALL, RESOLVE, RESOLVE_4, SETTINGS
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request
from kairosbuild.families.steps import (
    architecture,
    check_words,
    fetched,
    install,
    lists,
    materials,
    no_drivers,
    refuse_removals,
    resolve,
    unknown,
)  # fmt: skip
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.repomd import Described, Metadata, Repository
    from kairosbuild.sources.stanza import Package

_WORD = re.compile(r"@?[A-Za-z0-9/][A-Za-z0-9_.+:~^/()-]*")
_KEYS = "etc/pki/rpm-gpg/"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where a distribution's packages are, as (mirror, path), and which key files of the base sign them."""

    repositories: tuple[tuple[str, str], ...]
    keys: str
    major: bool = True  # a release is known by the first number of its version

    def release(self, version: str) -> str:
        """What its mirrors call this release."""
        return version.partition(".")[0] if self.major else version


DISTRIBUTIONS = {
    "fedora": Distribution(
        (("fedora", "{release}/Everything/{arch}/os"), ("fedora-updates", "{release}/Everything/{arch}")),
        "RPM-GPG-KEY-fedora-{release}-",
    ),
    "rocky": Distribution(
        (("rocky", "{release}/BaseOS/{arch}/os"), ("rocky", "{release}/AppStream/{arch}/os")),
        "RPM-GPG-KEY-Rocky-{release}",
    ),
    "almalinux": Distribution(
        (("almalinux", "{release}/BaseOS/{arch}/os"), ("almalinux", "{release}/AppStream/{arch}/os")),
        "RPM-GPG-KEY-AlmaLinux-{release}",
    ),
}  # fmt: skip


class Dnf:
    """See the module."""

    name: ClassVar[str] = "dnf"
    databases: ClassVar[tuple[str, ...]] = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
    distributions: ClassVar[frozenset[str]] = frozenset({*DISTRIBUTIONS, "rhel", "centos"})

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """dnf's plan for what is missing, as exact files, each signed by the distribution."""
        check_words(request, _WORD, "NAME or NAME-VERSION")
        repositories = _repositories(request.release, request.repositories, below, locker)
        keys = _keys(request.release, below, locker)
        every = [_open(one, locker) for one in repositories]
        plan = _resolve(request, below, every, locker)
        packages = [_exact(one, every).package for one in plan.wanted]
        asked = sorted({_exact(one, every).package.name for one in plan.asked} & {p.name for p in packages})
        _verify(packages, keys, locker)
        data = {
            "packages": [package.json() for package in packages],
            "asked": asked,
            "removed": plan.removed,
            "repositories": [one.json() for one in repositories],
        }
        return Locked(data, materials(packages))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Give the stack's dnf the files, and tell it which of them were asked for."""
        data = part.data
        names = [package["name"] for package in data["packages"]]
        arguments = {
            "removed": data["removed"],
            "dependencies": [name for name in names if name not in data["asked"]],
        }
        files = {f"rpms/{p['name']}.rpm": Blob(p["digest"], p["size"]) for p in data["packages"]}
        given = lists(task, arguments) | {
            name: task.put_bytes(text.encode())
            for name, text in (("install.sh", INSTALL), ("settings.sh", SETTINGS))
        }
        return install(task, ("/bin/sh", "/in/install.sh"), {**files, **given}, below, DROPPED)

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The package that has the kernel's image, and those of its version that it needs its modules from."""
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = [_open(one, locker) for one in repositories]
        parts = _kernel(request, every)
        packages = [one.package for one in parts]
        _verify(packages, _keys(request.release, below, locker), locker)
        image = next(one.name for one in packages if one.name.endswith("core") and "modules" not in one.name)
        return Locked(
            {"packages": [package.json() for package in packages], "image": image}, materials(packages)
        )

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """None: a compiler is what `toolchain` names, and akmods are not resolved. Raises InputError (`drivers-family`)."""
        raise no_drivers(request)

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The files of these packages over merged /usr."""
        from kairosbuild.sources.rpm import unpack

        return unpack(files, spool, keep)


# -- where packages come from, and who signed them -------------------------------------------------


def _distribution(below: Below) -> Distribution:
    for name in (below.system.id, *below.system.like):
        if name in DISTRIBUTIONS:
            return DISTRIBUTIONS[name]
    raise InputError(
        f"where the packages of {below.system.id or 'this distribution'} come from is not known",
        reason="packages-release",
        hint="name them by `repositories: [MIRROR:PATH, …]`; known are " + ", ".join(DISTRIBUTIONS),
    )


def _repositories(release: str, given: Sequence[str], below: Below, locker: Locker) -> tuple[Repository, ...]:
    """Those that were named, else those of the stack below, else those of the distribution."""
    from kairosbuild.sources.repomd import Repository

    if given:
        return tuple(Repository(*_named(one, below)) for one in given)
    if below.repositories and not release:
        return tuple(map(Repository.of, below.repositories))
    found = _distribution(below)
    words = {
        "release": release or found.release(below.system.version),
        "arch": architecture(locker.platform),
    }
    return tuple(Repository(mirror, path.format(**words)) for mirror, path in found.repositories)


def _named(text: str, below: Below) -> tuple[str, str]:
    mirror, colon, path = text.partition(":")
    if not colon or not path.strip("/"):
        raise InputError(
            f"{text!r} is no repository of {below.system.id}",
            reason="packages-repository",
            hint="write MIRROR:PATH, as fedora:43/Everything/x86_64/os",
        )
    return mirror, path.strip("/")


def _open(repository: Repository, locker: Locker) -> Metadata:
    from kairosbuild.sources.repomd import open_repository

    return open_repository(repository, locker.fetch)


def _keys(release: str, below: Below, locker: Locker) -> list[bytes]:
    """The certificates in the base that sign its packages; all of them where the distribution is unknown."""
    known = next(
        (DISTRIBUTIONS[n] for n in (below.system.id, *below.system.like) if n in DISTRIBUTIONS), None
    )
    start = _KEYS
    if known:
        start += known.keys.format(release=release or known.release(below.system.version))
    found = files_below(below, locker, lambda path: path.startswith(start))
    if not found:
        raise InputError(
            f"the base has no key that signs its packages: nothing is /{start}*",
            reason="packages-keys",
            hint="a base image brings the keys of its distribution in /etc/pki/rpm-gpg",
        )
    return list(found.values())


def _verify(packages: Sequence[Package], keys: Sequence[bytes], locker: Locker) -> None:
    """Fetch all of them, and refuse one that no key signed."""
    from kairosbuild.sources.rpm import verify

    fetched(packages, lambda one: one, lambda file, one: verify(file, keys, one.uri), locker)


# -- resolving -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Places of packages as `NUMBER/PATH`, the number a repository's."""

    wanted: list[str]
    asked: list[str]
    removed: list[str]


def _resolve(request: Request, below: Below, every: Sequence[Metadata], locker: Locker) -> _Plan:
    """Let the base's dnf plan, in the base's own tree, over what we fetched."""
    words = {
        "install": request.install, "remove": request.remove, "gone": sorted(below.removed),
        "weak": [str(request.weak)],
    }  # fmt: skip
    texts = {"settings.sh": SETTINGS, "resolve.sh": RESOLVE, "resolve.py": RESOLVE_4}
    given = rpms.inputs(every, below, locker) | lists(locker, words)
    given |= {name: locker.put_bytes(text.encode()) for name, text in texts.items()}
    outputs = ("wanted", "asked", "removed", "complaint")
    left = resolve(("/bin/sh", "/in/resolve.sh"), given, outputs, below, locker)
    if left["complaint"].strip():
        raise _no_way(request, left["complaint"], every)
    prefix = "file:///in/repositories/"
    wanted, asked = (
        [line.removeprefix(prefix) for line in left[name].splitlines() if line.startswith(prefix)]
        for name in ("wanted", "asked")
    )
    removed = left["removed"].split()
    refuse_removals("dnf", removed, request)
    return _Plan(sorted(wanted), asked, sorted(removed))


def _exact(place: str, every: Sequence[Metadata]) -> Described:
    number, _, location = place.partition("/")
    found = every[int(number)].at(location)
    if found is None:
        raise NodeError(f"dnf chose {location}, which no repository has", reason="dnf-plan")
    return found


def _no_way(request: Request, complaint: str, every: Sequence[Metadata]) -> InputError:
    """Of what dnf said, what says why."""
    lines = [line.strip(" -") for line in complaint.splitlines() if line.strip()]
    absent = re.search(
        r"(?:No package \"|No match for argument: |Unable to find a match: )([^\s\"]+)", complaint
    )
    if absent:
        return unknown(absent[1], rpms.names(every))
    start = next((n for n, line in enumerate(lines) if line.startswith("Problem")), 0)
    what = " ".join((*request.install, *(f"without {name}" for name in request.remove)))
    return InputError(
        f"dnf finds no way to install {what}: {'; '.join(lines[start : start + 8])}",
        reason="package-conflict",
    )


# -- kernels ---------------------------------------------------------------------------------------


def _kernel(request: KernelRequest, every: Sequence[Metadata]) -> list[Described]:
    """The package named, or what it stands for, and all `kernel…` packages of its version that it requires."""
    chosen = rpms.kernels(request, every)
    start = chosen[0].package.name.partition("-core")[0].partition("-modules")[0]
    peers = {
        one.package.name: one
        for metadata in every
        for one in metadata.beginning(start)
        if one.evr == chosen[0].evr
    }
    found, todo = {chosen[0].package.name: chosen[0]}, [chosen[0]]
    while todo:
        wanted = set(todo.pop().requires)
        for name, one in peers.items():
            if name not in found and wanted & {*one.provides, *(p.partition(" ")[0] for p in one.provides)}:
                found[name] = one
                todo.append(one)
    if not any(name.endswith("core") and "modules" not in name for name in found):
        raise InputError(
            f"{request.package} neither is a kernel nor depends on one",
            reason="kernel-package",
            hint="kernel-core",
        )
    return [found[name] for name in sorted(found)]
