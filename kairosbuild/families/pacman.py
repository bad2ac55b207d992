"""Arch and its kin: the base's own pacman resolves over the databases that we fetched, and installs, both offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.families.below import files_below
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request
from kairosbuild.families.steps import (
    architecture,
    check_words,
    fetched,
    install,
    lists,
    materials,
    no_drivers,
    resolve,
)  # fmt: skip
from kairosbuild.families.traces import IDENTITIES, SETTLED, TRACES
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Material, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.alpm import Described, Index, Repository

_KEYS = "usr/share/pacman/keyrings/"
_WORD = re.compile(r"[a-z0-9@][A-Za-z0-9@._+-]*([<>=]{1,2}[A-Za-z0-9.:_+~-]+)?")
_DROPPED = (*TRACES, *IDENTITIES, "var/cache/pacman/*", "var/lib/pacman/sync/*", "var/lib/pacman/db.lck")

_CONF = r"""mkdir -p /tmp/db /tmp/cache /tmp/gpg
{
    printf '[options]\nHoldPkg = \nArchitecture = auto\nSigLevel = Never\nLocalFileSigLevel = Never\n'
    printf 'CacheDir = /tmp/cache\nGPGDir = /tmp/gpg\nLogFile = /dev/null\nDisableSandbox\n'
    for name; do printf '[%s]\nServer = file:///in/none\n' "$name"; done
} >/tmp/pacman.conf
"""
_RESOLVE = (
    r"""set -eu
set -- $(cat /in/repositories)
"""
    + _CONF
    + r"""cp -a /var/lib/pacman/local /tmp/db/ 2>/dev/null || mkdir -p /tmp/db/local
while read -r name; do
    for folder in /tmp/db/local/"$name"-*-*; do
        [ ! -d "$folder" ] || [ "$(sed -n '/^%NAME%$/{n;p;}' "$folder/desc")" != "$name" ] || rm -rf "$folder"
    done
done </in/gone
[ ! -d /in/local ] || cp -r /in/local/. /tmp/db/local/
for folder in /tmp/db/local/*/; do [ ! -d "$folder" ] || [ -e "$folder/files" ] || : >"$folder/files"; done
[ -e /tmp/db/local/ALPM_DB_VERSION ] || echo 9 >/tmp/db/local/ALPM_DB_VERSION
mkdir -p /tmp/db/sync
cp /in/sync/* /tmp/db/sync/
run() { pacman --config /tmp/pacman.conf --dbpath /tmp/db --noconfirm "$@" </dev/null; }
: >/out/complaint
: >/out/plan
: >/out/removed
if [ -s /in/remove ]; then
    run -Rp --print-format %n $(cat /in/remove) >/out/removed 2>/tmp/said || cat /tmp/said >>/out/complaint
fi
if [ -s /in/install ]; then
    run -S --needed --print --print-format '%r %n %v' $(cat /in/install) >/out/plan 2>/tmp/said ||
        { echo failed; cat /tmp/said; } >>/out/complaint
fi
"""
)
_INSTALL = (
    r"""set -eu
set --
"""
    + _CONF
    + r"""run() { pacman --config /tmp/pacman.conf --noconfirm "$@" </dev/null; }
mkdir -p /var/lib/pacman/local
before=$(ls /var/lib/pacman/local)
[ ! -s /in/remove ] || run -R $(cat /in/remove)
[ ! -e /in/packages ] || run -U --noprogressbar --asdeps $(find /in/packages -type f | sort)
[ ! -s /in/asked ] || run -D --asexplicit $(cat /in/asked)
for folder in /var/lib/pacman/local/*/; do # the day of installing is no property of the system
    name=${folder%/}
    case " $(echo $before) " in *" ${name##*/} "*) continue ;; esac
    [ -e "$folder/desc" ] || continue
    sed -i "/^%INSTALLDATE%\$/{n;s/.*/$SOURCE_DATE_EPOCH/;}" "$folder/desc"
done
"""
    + SETTLED
)


class Pacman:
    """See the module."""

    name: ClassVar[str] = "pacman"
    databases: ClassVar[tuple[str, ...]] = ("var/lib/pacman/local/ALPM_DB_VERSION",)
    distributions: ClassVar[frozenset[str]] = frozenset({"arch", "archarm", "manjaro"})

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """pacman's plan for what is missing; each package is fetched, and signed by a key of the base's keyring."""
        check_words(request, _WORD, "NAME, or NAME=VERSION")
        repositories = _repositories(request.repositories, below)
        index, databases = _open(repositories, locker)
        for word in request.install:
            name = re.split("[<>=]", word)[0]
            if not index.gives(name):
                index.get(name)
        plan, removed = _resolve(request, below, databases, locker)
        chosen = [index.get(name, version) for name, version in plan]
        _refuse_conflicts(chosen, request)
        asked = sorted({re.split("[<>=]", word)[0] for word in request.install} & {name for name, _ in plan})
        data = {
            "packages": _rows(chosen),
            "asked": asked,
            "removed": removed,
            "repositories": [one.json() for one in repositories],
        }
        return Locked(data, _verified(chosen, below, locker))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Let the stack's pacman install these files."""
        data = part.data
        names = [material.uri.rpartition("/")[2] for material in part.materials]
        files = {
            f"packages/{name}": Blob(one["digest"], one["size"])
            for name, one in zip(names, data["packages"], strict=True)
        }
        given = lists(task, {"asked": data["asked"], "remove": data["removed"]})
        return install(task, ("/bin/sh", "-c", _INSTALL), files | given, below, _DROPPED, {"HOME": "/root"})

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The package of this name, such as linux or linux-lts: kernel and modules are in one."""
        index, _ = _open(_repositories(request.repositories, below), locker)
        found = index.get(request.package, request.version)
        if not request.package.startswith("linux"):
            raise InputError(
                f"{request.package} is no kernel", reason="kernel-package", hint="linux, or linux-lts"
            )
        data = {"packages": _rows([found]), "image": found.package.name}
        return Locked(data, _verified([found], below, locker))

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """None: a compiler is what `toolchain` names. Raises InputError (`drivers-family`)."""
        raise no_drivers(request)

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The files of these packages."""
        from kairosbuild.sources.alpm import unpack

        items = [item for file in files for item in unpack(file, spool) if keep(item[0].path)]
        spool.flush()
        return items


def _repositories(names: Sequence[str], below: Below) -> list[Repository]:
    from kairosbuild.sources.alpm import Repository

    if names:
        return [Repository(name) for name in names]
    return [Repository.of(one) for one in below.repositories] or [Repository("core"), Repository("extra")]


def _open(repositories: Sequence[Repository], locker: Locker) -> tuple[Index, dict[str, Path]]:
    from kairosbuild.sources.alpm import Index, read_database

    arch = architecture(locker.platform)
    files = {one.name: locker.fetch(one.uri(arch, f"{one.name}.db")) for one in repositories}
    packages = [p for one in repositories for p in read_database(files[one.name], one, arch)]
    return Index(packages), files


def _resolve(
    request: Request, below: Below, databases: Mapping[str, Path], locker: Locker
) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, version) of what pacman would install, and the names of what it would remove."""
    from kairosbuild.sources.alpm import description

    inputs = {f"sync/{name}.db": locker.put_bytes(path.read_bytes()) for name, path in databases.items()}
    gone = set(below.removed)
    for material in below.packages:
        folder, text = description(locker.fetch(material.uri, digest=material.digest, size=material.size))
        name = folder.rsplit("-", 2)[0]
        gone.add(name)
        if name not in below.removed:
            inputs[f"local/{folder}/desc"] = locker.put_bytes(text.encode())
    words = {
        "repositories": list(databases), "gone": sorted(gone), "install": request.install, "remove": request.remove,
    }  # fmt: skip
    inputs |= lists(locker, words)
    left = resolve(("/bin/sh", "-c", _RESOLVE), inputs, ("plan", "removed", "complaint"), below, locker)
    if complaint := left["complaint"].strip():
        raise _no_way(request, complaint)
    plan = [line.split()[1:3] for line in left["plan"].splitlines() if len(line.split()) == 3]
    return [(name, version) for name, version in plan], sorted(left["removed"].split())


def _refuse_conflicts(chosen: Sequence[Described], request: Request) -> None:
    """pacman does not look at conflicts while it only prints; with what is installed it does when it installs."""
    providers: dict[str, str] = {}
    for one in chosen:
        for word in (one.package.name, *one.fields.get("PROVIDES", ())):
            providers.setdefault(re.split("[<>=]", word)[0], one.package.name)
    for one in chosen:
        for word in one.fields.get("CONFLICTS", ()):
            other = providers.get(word)  # a word with a version is left to pacman
            if other and other != one.package.name:
                raise InputError(
                    f"pacman finds no way to install {' '.join(request.install)}: "
                    f"{one.package.name} and {other} are in conflict",
                    reason="package-conflict",
                )


def _no_way(request: Request, complaint: str) -> InputError:
    lines = [
        line.removeprefix("error: ").removeprefix(":: ")
        for line in complaint.splitlines()
        if line.strip() and line != "failed"
    ]
    if request.remove and not complaint.startswith("failed"):
        return InputError(
            f"pacman cannot remove {' '.join(request.remove)}: {'; '.join(lines[:8])}",
            reason="package-removal",
        )
    return InputError(
        f"pacman finds no way to install {' '.join(request.install)}: {'; '.join(lines[:8])}",
        reason="package-conflict",
    )


def _rows(packages: Sequence[Described]) -> list[dict[str, object]]:
    return [
        {**one.package.json(), "license": " AND ".join(one.fields.get("LICENSE", ()))} for one in packages
    ]


def _verified(packages: Sequence[Described], below: Below, locker: Locker) -> tuple[Material, ...]:
    """These packages as materials: fetched, and signed by a key of the base's keyring."""
    from kairosbuild.sources.alpm import verify

    found = files_below(below, locker, lambda path: path.startswith(_KEYS) and path.endswith(".gpg"))
    if not found:
        raise InputError(
            f"the base has no keyring in /{_KEYS}",
            reason="packages-keys",
            hint="its package archlinux-keyring brings one",
        )
    keys = list(found.values())

    fetched(packages, lambda one: one.package, lambda file, one: verify(file, one, keys), locker)
    return materials(one.package for one in packages)
