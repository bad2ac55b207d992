"""openSUSE and its kin: the base's own zypper resolves over signed repositories and installs, both offline."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.families import rpms
from kairosbuild.families.below import files_below
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request
from kairosbuild.families.steps import (
    architecture,
    check_words,
    install,
    lists,
    materials,
    no_drivers,
    refuse_removals,
    resolve,
    unknown,
)  # fmt: skip
from kairosbuild.families.traces import IDENTITIES, SETTLED, TRACES
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.repomd import Metadata, Repository
    from kairosbuild.sources.stanza import Package

_KEYS = "usr/lib/rpm/gnupg/keys/"
_WORD = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.+:~^/()=<>-]*")
_ADDED = ("to-install", "to-upgrade", "to-downgrade", "to-reinstall", "to-change-arch")
_DROPPED = (
    *TRACES, *IDENTITIES,
    "var/log/zypp/*", "var/log/zypper.log", "var/cache/zypp/*", "var/lib/zypp/AnonymousUniqueId",
    "var/lib/zypp/LastDistributionFlavor", *rpms.LOCKS,
)  # fmt: skip

_SETTINGS = (
    rpms.SETTINGS
    + r"""mkdir -p /tmp/repos /var/lib/zypp
repository() { # repository NAME ADDRESS TYPE
    printf '[%s]\nname=%s\nenabled=1\nautorefresh=1\nbaseurl=%s\ntype=%s\n' "$1" "$1" "$2" "$3"
    printf 'gpgcheck=0\nrepo_gpgcheck=0\npkg_gpgcheck=0\n'
} >"/tmp/repos/$1.repo"
z() {
    zypper --non-interactive --no-gpg-checks --reposd-dir /tmp/repos --cache-dir /tmp/cache "$@" </dev/null
}
"""
)
_RESOLVE = (
    _SETTINGS
    + rpms.BELOW
    + r"""for folder in /in/repositories/*; do repository "r${folder##*/}" "file://$folder" rpm-md; done
z --xmlout install --dry-run $(words weak) -- $(words wanted) >/out/plan 2>/out/said || echo "failed $?" >>/out/said
"""
)
_INSTALL = (
    _SETTINGS
    + r"""[ ! -e /in/rpms ] || repository locked dir:/in/rpms plaindir
z install --no-recommends --allow-unsigned-rpm -- $(words wanted)
[ ! -e /var/lib/zypp/AutoInstalled ] || sed -i '/^#/d' /var/lib/zypp/AutoInstalled # a comment tells the time
"""
    + rpms.CLOSED
    + SETTLED
)


class Zypper:
    """See the module."""

    name: ClassVar[str] = "zypper"
    databases: ClassVar[tuple[str, ...]] = (
        "usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/Packages.db", "var/lib/rpm/rpmdb.sqlite",
    )  # fmt: skip
    distributions: ClassVar[frozenset[str]] = frozenset(
        {"opensuse", "opensuse-leap", "opensuse-tumbleweed", "suse", "sles"}
    )

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """zypper's plan for what is missing, as exact files out of signed repositories."""
        check_words(request, _WORD, "NAME or NAME=VERSION")
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = _open(repositories, below, locker)
        packages, removed = _resolve(request, below, every, locker)
        refuse_removals("zypper", removed, request)
        data = {
            "packages": [package.json() for package in packages],
            "wanted": _wanted(request),
            "removed": removed,
            "repositories": [one.json() for one in repositories],
        }
        return Locked(data, materials(packages))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Let the stack's zypper install out of a folder of just these files."""
        data = part.data
        files = {
            f"rpms/{material.uri.rpartition('/')[2]}": Blob(material.digest, material.size)
            for material in part.materials
        }
        files |= lists(task, {"wanted": data["wanted"]})
        return install(task, ("/bin/sh", "-c", _INSTALL), files, below, _DROPPED)

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The newest package of this name, such as kernel-default: kernel and modules are in one."""
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = _open(repositories, below, locker)
        found = rpms.kernels(request, every)[0].package
        return Locked({"packages": [found.json()], "image": found.name}, materials([found]))

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """None: a compiler is what `toolchain` names. Raises InputError (`drivers-family`)."""
        raise no_drivers(request)

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The files of these packages."""
        from kairosbuild.sources.rpm import unpack

        return unpack(files, spool, keep)


def _repositories(release: str, given: Sequence[str], below: Below, locker: Locker) -> tuple[Repository, ...]:
    """Those that were named, else those of the stack below, else those of the distribution."""
    from kairosbuild.sources.repomd import Repository

    if given:
        pairs = [one.partition(":") for one in given]
        return tuple(Repository(mirror, path.strip("/")) for mirror, _, path in pairs)
    if below.repositories and not release:
        return tuple(map(Repository.of, below.repositories))
    version = release or below.system.version
    if below.system.id == "opensuse-tumbleweed":
        paths = ["tumbleweed/repo/oss"]
    elif int(version.partition(".")[0] or 0) >= 16:
        paths = [f"distribution/leap/{version}/repo/oss/{architecture(locker.platform)}"]
    else:
        paths = [
            f"distribution/leap/{version}/repo/oss",
            f"update/leap/{version}/oss",
            f"update/leap/{version}/sle",
        ]
    return tuple(Repository("opensuse", path) for path in paths)


def _open(repositories: Sequence[Repository], below: Below, locker: Locker) -> list[Metadata]:
    """What these say of themselves, signed by a key that the base brings."""
    from kairosbuild.sources.repomd import open_repository

    keys = list(files_below(below, locker, lambda path: path.startswith(_KEYS)).values())
    return [open_repository(one, locker.fetch, certificates=keys, signed=True) for one in repositories]


def _wanted(request: Request) -> list[str]:
    return [*request.install, *(f"!{name}" for name in request.remove)]


def _resolve(
    request: Request, below: Below, every: Sequence[Metadata], locker: Locker
) -> tuple[list[Package], list[str]]:
    """The packages that zypper would install, and the names of what it would remove."""
    words = {
        "gone": sorted(below.removed),
        "wanted": _wanted(request),
        "weak": ["--recommends" if request.weak else "--no-recommends"],
    }
    given = rpms.inputs(every, below, locker) | lists(locker, words)
    left = resolve(("/bin/sh", "-c", _RESOLVE), given, ("plan", "said"), below, locker)
    plan, said = left["plan"], left["said"]
    try:
        stream = ET.fromstring(plan)  # noqa: S314 - of zypper in our sandbox, over verified metadata
    except ET.ParseError:
        raise NodeError(
            f"zypper's plan cannot be read: {plan[-400:]}{said[-400:]}", reason="zypper-plan"
        ) from None
    if re.search(r"(?m)^failed \d+$", said):
        raise _no_way(request, stream, said, every)
    added = [one for section in _ADDED for one in stream.iterfind(f".//{section}/solvable")]
    removed = [one.attrib["name"] for one in stream.iterfind(".//to-remove/solvable")]
    packages = [_exact(one, every) for one in added if one.get("type") == "package"]
    return sorted(packages, key=lambda package: package.name), sorted(removed)


def _exact(solvable: ET.Element, every: Sequence[Metadata]) -> Package:
    name, edition, arch = (solvable.attrib[key] for key in ("name", "edition", "arch"))
    metadata = every[int(solvable.attrib["repository"].removeprefix("r"))]
    for one in metadata.named(name):
        if one.package.version == edition and one.package.architecture == arch:
            return one.package
    raise NodeError(f"zypper chose {name}-{edition}.{arch}, which no repository has", reason="zypper-plan")


def _no_way(request: Request, stream: ET.Element, said: str, every: Sequence[Metadata]) -> InputError:
    messages = [one.text or "" for one in stream.iterfind(".//message[@type='error']")]
    for message in messages:
        if match := re.search(r"No provider of '([^']+)' found|'([^']+)' not found", message):
            return unknown(match[1] or match[2], rpms.names(every))
    problems = [
        line.strip() for one in stream.iterfind(".//description") for line in (one.text or "").splitlines()
    ]
    why = (
        [line for line in problems if line and not line.startswith("Solution")] or messages or [said.strip()]
    )
    what = " ".join(_wanted(request))
    return InputError(
        f"zypper finds no way to install {what}: {'; '.join(why[:6])}", reason="package-conflict"
    )
