"""Alpine: the base's own apk resolves over verified indexes and installs, both offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob, of_file
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.families.below import files_below
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request
from kairosbuild.families.steps import architecture, check_words, install, lists, no_drivers, resolve
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Material, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.apkindex import Index, Package, Repository

_DATABASES = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_KEYS = ("etc/apk/keys/", "usr/share/apk/keys/")
_BRANCH = re.compile(r"(\d+\.\d+)(?:\.\d+)?")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:/-]*([=<>~]+[A-Za-z0-9+._:-]+)?(@[a-z]+)?")
_STEP = re.compile(
    r"(?m)^\(\s*\d+/\d+\) (Installing|Upgrading|Downgrading|Replacing|Reinstalling|Purging) (\S+) "
    r"\((?:\S+ -> )?([^)\s]+)\)"
)
_LINKS = re.compile(r"(?:usr/)?lib/modules/[^/]+/(?:vmlinuz|build|source)")

DROPPED = (
    "lib/apk/db/lock", "usr/lib/apk/db/lock", "lib/apk/exec/*", "var/cache/apk/*", "var/log/apk.log",
    "etc/*-", "etc/.pwd.lock", "etc/machine-id", "etc/ssh/ssh_host_*", "root/.ash_history",
    "run/*", "tmp/*", "var/tmp/*", "dev/*",
)  # fmt: skip
"""Globs, relative to the root, of what a run leaves and no layer may have."""

_RESOLVE = r"""set -eu
cp /in/installed "/$1"
cp /in/world /etc/apk/world
shift
apk --no-network --no-cache --no-progress --repositories-file /in/repositories add --simulate "$@" \
    >/out/plan 2>&1 || echo "failed $?" >>/out/plan
"""
_INSTALL = r"""set -eu
arch=$(apk --print-arch)
mkdir -p "/tmp/repository/$arch"
for file in /in/packages/*.apk; do
    [ ! -e "$file" ] || ln -s "$file" "/tmp/repository/$arch/"
done
cd "/tmp/repository/$arch"
apk index --quiet --allow-untrusted --rewrite-arch "$arch" --output APKINDEX.tar.gz $(ls *.apk 2>/dev/null) >/dev/null
echo /tmp/repository >/tmp/repositories
for name in $REMOVED; do
    sed -i -E "/^$name([=<>~@]|\$)/d" /etc/apk/world
done
cd /
apk --no-network --no-cache --no-progress --allow-untrusted --repositories-file /tmp/repositories add "$@" </dev/null
if [ -e /etc/shadow ]; then # adduser writes today's date
    awk -F: -v OFS=: -v day=$((SOURCE_DATE_EPOCH / 86400)) '$3 > day { $3 = day } 1' /etc/shadow >/tmp/shadow
    cmp -s /tmp/shadow /etc/shadow || cat /tmp/shadow >/etc/shadow
fi
"""


class Apk:
    """See the module."""

    name: ClassVar[str] = "apk"
    databases: ClassVar[tuple[str, ...]] = _DATABASES
    distributions: ClassVar[frozenset[str]] = frozenset({"alpine"})

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """apk's plan for what is missing. The files are fetched now: the index knows SHA-1 only."""
        check_words(request, _WORD, "NAME, NAME=VERSION, NAME~VERSION")
        repositories = _repositories(request.release, request.repositories, below)
        found = _look(below, locker)
        index, indexes = _open(repositories, found, locker)
        for word in request.install:
            name = re.split("[=<>~@]", word)[0]
            if "/" not in name and ":" not in name and not index.gives(name):
                index.get(name)
        text = _plan(request, below, found, indexes, locker)
        steps = _read(text, request)
        chosen = [index.get(name, version) for word, name, version in steps if word != "Purging"]
        rows, materials = _pinned(chosen, locker)
        data = {
            "packages": rows,
            "removed": sorted({name for word, name, _ in steps if word == "Purging"} | set(request.remove)),
            "world": {"add": list(request.install), "remove": list(request.remove)},
            "repositories": [one.json() for one in repositories],
        }
        return Locked(data, materials)

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Let the stack's apk install them out of an index of just these files."""
        data = part.data
        files = {
            f"packages/{one['name']}-{one['version']}.apk": Blob(one["digest"], one["size"])
            for one in data["packages"]
        }
        command = ("/bin/sh", "-c", _INSTALL, "sh", *data["world"]["add"])
        env = {"HOME": "/root", "REMOVED": " ".join(data["world"]["remove"])}
        return install(task, command, files, below, DROPPED, env)

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The package of this name, such as linux-virt: kernel and modules are in one."""
        repositories = _repositories(request.release, request.repositories, below)
        index, _ = _open(repositories, _look(below, locker), locker)
        package = index.get(request.package, request.version)
        if not package.name.startswith("linux-"):
            raise InputError(
                f"{package.name} is no kernel", reason="kernel-package", hint="linux-virt, or linux-lts"
            )
        rows, materials = _pinned([package], locker)
        return Locked({"packages": rows, "image": package.name}, materials)

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """None: a compiler is what `toolchain` names. Raises InputError (`drivers-family`)."""
        raise no_drivers(request)

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The files of these packages, less links that lead from the modules to elsewhere."""
        from kairosbuild.sources.apkindex import unpack

        items = [
            item
            for file in files
            for item in unpack(file, spool)
            if keep(item[0].path) and not (item[0].type == "symlink" and _LINKS.fullmatch(item[0].path))
        ]
        spool.flush()
        return items


# -- resolving -------------------------------------------------------------------------------------


def _repositories(release: str, names: Sequence[str], below: Below) -> list[Repository]:
    from kairosbuild.sources.apkindex import Repository

    if below.repositories and not release and not names:
        return [Repository.of(one) for one in below.repositories]
    branch = release
    if not branch and below.repositories:
        branch = Repository.of(below.repositories[0]).branch
    if not branch:
        match = _BRANCH.fullmatch(below.system.version)
        branch = f"v{match[1]}" if match else "edge"
    branch = f"v{branch}" if branch[:1].isdigit() else branch
    return [Repository(branch, name) for name in names or ("main", "community")]


def _look(below: Below, locker: Locker) -> Mapping[str, bytes]:
    """The database, the world and the keys of the image at the bottom."""
    wanted = {*_DATABASES, "etc/apk/world"}
    return files_below(below, locker, lambda path: path in wanted or path.startswith(_KEYS))


def _open(
    repositories: Sequence[Repository], found: Mapping[str, bytes], locker: Locker
) -> tuple[Index, dict[str, Path]]:
    """The verified packages of these repositories, and the index files by what apk calls their places."""
    from kairosbuild.sources.apkindex import Index, packages_of, read_index

    keys = {path.rpartition("/")[2]: data for path, data in found.items() if path.startswith(_KEYS)}
    arch = architecture(locker.platform)
    packages: list[Package] = []
    files: dict[str, Path] = {}
    for one in repositories:
        uri = one.uri(arch, "APKINDEX.tar.gz")
        path = locker.fetch(uri)
        packages += packages_of(read_index(path, keys, uri), one, arch)
        files[f"repositories.d/{one.branch}/{one.name}/{arch}/APKINDEX.tar.gz"] = path
    return Index(packages), files


def _plan(
    request: Request, below: Below, found: Mapping[str, bytes], indexes: Mapping[str, Path], locker: Locker
) -> str:
    """What the base's apk would do, in its words."""
    database = next(path for path in _DATABASES if path in found)
    installed, names = _installed(found[database].decode(), below, locker)
    gone = below.removed | set(request.remove)
    world = [*found.get("etc/apk/world", b"").decode().split(), *names]
    kept = [word for word in dict.fromkeys(world) if re.split("[=<>~@]", word)[0] not in gone]
    places = sorted({path.rpartition("/")[0].rpartition("/")[0] for path in indexes})
    inputs = {path: locker.put_bytes(file.read_bytes()) for path, file in indexes.items()}
    inputs |= lists(locker, {"world": kept, "repositories": [f"/in/{place}" for place in places]})
    inputs["installed"] = locker.put_bytes(installed.encode())
    command = ("/bin/sh", "-c", _RESOLVE, "sh", database, *request.install)
    return resolve(command, inputs, ("plan",), below, locker)["plan"]


def _installed(text: str, below: Below, locker: Locker) -> tuple[str, list[str]]:
    """The database as it is on top of what is below, and the names of what was put on the image."""
    from kairosbuild.sources.apkindex import stanza

    by_name: dict[str, str] = {}
    for one in text.strip("\n").split("\n\n"):
        if match := re.search(r"(?m)^P:(.*)$", one):
            by_name[match[1]] = one
    added: list[str] = []
    for material in below.packages:
        made = stanza(locker.fetch(material.uri, digest=material.digest, size=material.size))
        match = re.search(r"(?m)^P:(.*)$", made)
        assert match, material.uri
        by_name[match[1]] = made.strip("\n")
        added.append(match[1])
    kept = (one for name, one in by_name.items() if name not in below.removed)
    return "".join(f"{one}\n\n" for one in kept), added


def _read(text: str, request: Request) -> list[tuple[str, str, str]]:
    """The steps (verb, name, version) of a plan. Raises InputError (`package-conflict`, `package-removal`)."""
    if text.rstrip().rpartition("\n")[2].startswith("failed "):
        said = [line.strip() for line in text.splitlines() if line.startswith((" ", "ERROR"))]
        raise InputError(
            f"apk finds no way to install {' '.join(request.install)}: {'; '.join(said[:8])}",
            reason="package-conflict",
        )
    steps: list[tuple[str, str, str]] = _STEP.findall(text)
    gone = {name for word, name, _ in steps if word == "Purging"}
    if stays := sorted(set(request.remove) - gone):
        raise InputError(
            f"{' '.join(stays)} cannot be removed: it is not installed, or others need it",
            reason="package-removal",
        )
    if not steps and not text.strip():
        raise NodeError("apk said nothing of what it would do", reason="apk-plan")
    return steps


def _pinned(
    packages: Sequence[Package], locker: Locker
) -> tuple[list[dict[str, object]], tuple[Material, ...]]:
    """These packages as rows of a lock and as materials: fetched, and verified against the signed index."""
    from kairosbuild.sources.apkindex import verify

    rows: list[dict[str, object]] = []
    materials = []
    for package in packages:
        path = locker.fetch(package.uri, size=package.size)
        verify(path, package)
        blob = of_file(path)
        rows.append(
            {
                "name": package.name,
                "version": package.version,
                "arch": package.fields["A"],
                "digest": blob.digest,
                "size": blob.size,
                "license": package.fields.get("L", ""),
            }
        )
        materials.append(Material(package.uri, blob.digest, blob.size))
    return rows, tuple(materials)
