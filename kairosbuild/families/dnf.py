"""Fedora, Rocky, AlmaLinux and their kin: the base's own dnf, 5 or 4, resolves and installs.

What it resolves over is what we fetched. Fedora and its kin sign packages, not repositories: every package that
was chosen is fetched while it is locked, and refused unless a key that the base brings signed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError, nearest
from kairosbuild.families.below import files_below, tree
from kairosbuild.families.family import Below, DriversRequest, Keep, KernelRequest, Request
from kairosbuild.families.traces import IDENTITIES, SETTLED, TRACES
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Material, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item
    from kairosbuild.sources.repomd import Described, Metadata, Repository
    from kairosbuild.sources.stanza import Package

_WORD = re.compile(r"@?[A-Za-z0-9/][A-Za-z0-9_.+:~^/()-]*")
_KEYS = "etc/pki/rpm-gpg/"
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


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
        _check(request)
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
        return Locked(data, _materials(packages))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Give the stack's dnf the files, and tell it which of them were asked for."""
        data = part.data
        names = [package["name"] for package in data["packages"]]
        arguments = {
            "removed": data["removed"],
            "dependencies": [name for name in names if name not in data["asked"]],
        }
        files = {f"rpms/{p['name']}.rpm": Blob(p["digest"], p["size"]) for p in data["packages"]}
        scripts = {"install.sh": _INSTALL, "settings.sh": _SETTINGS}
        lists = {name: "\n".join(words) for name, words in arguments.items()}
        given = {name: task.put_bytes(text.encode()) for name, text in {**scripts, **lists}.items()}
        return Action(
            ("/bin/sh", "/in/install.sh"),
            tuple(one.layer for one in below),
            {**files, **given},
            cwd="/",
            layer=True,
            drop=_DROPPED,
            platform=task.platform,
        )

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The package that has the kernel's image, and those of its version that it needs its modules from."""
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = [_open(one, locker) for one in repositories]
        parts = _kernel(request, every)
        packages = [one.package for one in parts]
        _verify(packages, _keys(request.release, below, locker), locker)
        image = next(one.name for one in packages if one.name.endswith("core") and "modules" not in one.name)
        return Locked(
            {"packages": [package.json() for package in packages], "image": image}, _materials(packages)
        )

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """Not yet: akmods are not resolved here. Raises InputError (`drivers-family`)."""
        raise InputError(
            "drivers are taken from distributions of the family apt only",
            reason="drivers-family",
            hint="install the modules' packages by a node of kind packages",
        )

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
        "arch": _ARCHITECTURES.get(locker.platform.split("/")[1], locker.platform.split("/")[1]),
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


def _verify(packages: Iterable[Package], keys: Sequence[bytes], locker: Locker) -> None:
    """Fetch all of them, and refuse one that no key signed."""
    from kairosbuild.sources.rpm import verify

    def one(package: Package) -> None:
        file = locker.fetch(package.uri, digest=package.digest, size=package.size)
        verify(file, keys, package.uri)

    with ThreadPoolExecutor(max_workers=8) as pool:
        for done in [pool.submit(one, package) for package in packages]:
            done.result()


def _materials(packages: Iterable[Package]) -> tuple[Material, ...]:
    return tuple(Material(package.uri, package.digest, package.size) for package in packages)


# -- resolving -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Places of packages as `NUMBER/PATH`, the number a repository's."""

    wanted: list[str]
    asked: list[str]
    removed: list[str]


def _check(request: Request) -> None:
    """Refuse what dnf would take for an option. Raises InputError (`package-name`)."""
    for word in (*request.install, *request.remove):
        if not _WORD.fullmatch(word):
            raise InputError(
                f"{word!r} is not the name of a package", reason="package-name", hint="NAME or NAME-VERSION"
            )


def _resolve(request: Request, below: Below, every: Sequence[Metadata], locker: Locker) -> _Plan:
    """Let the base's dnf plan, in the base's own tree, over what we fetched."""
    inputs: dict[str, Blob] = {}
    for number, metadata in enumerate(every):
        for path, content in metadata.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            inputs[f"repositories/{number}/{path}"] = locker.put_bytes(data)
    for name, material in _newest(below, locker).items():
        inputs[f"below/{name}.rpm"] = Blob(material.digest, material.size)
    lists = {
        "install": request.install, "remove": request.remove, "gone": sorted(below.removed),
        "weak": ("True",) if request.weak else ("False",),
    }  # fmt: skip
    texts = {name: "".join(f"{word}\n" for word in words) for name, words in lists.items()}
    texts |= {"settings.sh": _SETTINGS, "resolve.sh": _RESOLVE, "resolve.py": _RESOLVE_4}
    inputs |= {name: locker.put_bytes(text.encode()) for name, text in texts.items()}
    outputs = ("wanted", "asked", "removed", "complaint")
    action = Action(
        ("/bin/sh", "/in/resolve.sh"),
        (tree(below, locker),),
        inputs,
        outputs,
        cwd="/",
        layer=True,
        drop=("*",),
        platform=locker.platform,
    )
    done = locker.execute(action).outputs
    left = {name: locker.path(done[name]).read_text("utf-8", "replace") for name in outputs}
    if left["complaint"].strip():
        raise _no_way(request, left["complaint"], every)
    prefix = "file:///in/repositories/"
    wanted, asked = (
        [line.removeprefix(prefix) for line in left[name].splitlines() if line.startswith(prefix)]
        for name in ("wanted", "asked")
    )
    removed = left["removed"].split()
    if surprising := sorted(set(removed) - set(request.remove)):
        raise InputError(
            f"to do that, dnf would remove {' '.join(surprising)}",
            reason="package-removal",
            hint="list it under `remove` if that is wanted",
        )
    return _Plan(sorted(wanted), asked, sorted(removed))


def _newest(below: Below, locker: Locker) -> dict[str, Material]:
    """The packages that were put on the base, each as it was installed last."""
    from kairosbuild.sources.rpm import read

    found = {}
    for one in below.packages:
        found[read(locker.fetch(one.uri, digest=one.digest, size=one.size)).name] = one
    return {name: material for name, material in found.items() if name not in below.removed}


def _exact(place: str, every: Sequence[Metadata]) -> Described:
    number, _, location = place.partition("/")
    found = every[int(number)].at(location)
    if found is None:
        raise NodeError(f"dnf chose {location}, which no repository has", reason="dnf-plan")
    return found


def _no_way(request: Request, complaint: str, every: Sequence[Metadata]) -> InputError:
    """Of what dnf said, what says why."""
    lines = [line.strip(" -") for line in complaint.splitlines() if line.strip()]
    unknown = re.search(
        r"(?:No package \"|No match for argument: |Unable to find a match: )([^\s\"]+)", complaint
    )
    if unknown:
        names = {name for metadata in every for name in metadata.names()}
        near = [name for name in names if name[:2] == unknown[1][:2]]
        hint = nearest(unknown[1], near) if near else ""
        return InputError(f"there is no package {unknown[1]!r}", reason="package-unknown", hint=hint)
    start = next((n for n, line in enumerate(lines) if line.startswith("Problem")), 0)
    what = " ".join((*request.install, *(f"without {name}" for name in request.remove)))
    return InputError(
        f"dnf finds no way to install {what}: {'; '.join(lines[start : start + 8])}",
        reason="package-conflict",
    )


# -- kernels ---------------------------------------------------------------------------------------


def _kernel(request: KernelRequest, every: Sequence[Metadata]) -> list[Described]:
    """The package named, or what it stands for, and all `kernel…` packages of its version that it requires."""
    from kairosbuild.sources.evr import newest_last

    named = [one for metadata in every for one in metadata.named(request.package)]
    named.sort(key=lambda one: newest_last(one.evr), reverse=True)
    if not named:
        names = {name for metadata in every for name in metadata.names() if name.startswith("kernel")}
        hint = nearest(request.package, names) if names else ""
        raise InputError(f"there is no package {request.package!r}", reason="package-unknown", hint=hint)
    chosen = [one for one in named if request.version in ("", one.package.version)]
    if not chosen:
        have = ", ".join(one.package.version for one in named)
        raise InputError(
            f"no repository has {request.package} in version {request.version}",
            reason="package-unknown",
            hint=f"there is {have}",
        )
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


# -- what runs inside ------------------------------------------------------------------------------

_DROPPED = (
    *TRACES,
    *IDENTITIES,
    "var/cache/dnf/*", "var/cache/libdnf5/*", "var/log/dnf*", "var/log/hawkey.log",
    # When and by whom something was installed; what is installed, and why, lies elsewhere.
    "usr/lib/sysimage/libdnf5/transaction_history.sqlite*", "var/lib/dnf/*.lock", "var/lib/dnf/history.sqlite*",
    "usr/lib/sysimage/rpm/.rpm.lock", "var/lib/rpm/.rpm.lock",
)  # fmt: skip

_SETTINGS = r"""set -eu
mkdir -p /tmp/home/.config/rpm /tmp/cache /tmp/logs
export HOME=/tmp/home SYSTEMD_OFFLINE=1
# What our sandbox is already, rpm need not do again; what is mounted there, it has to let alone. Signatures
# were checked when the packages were locked, and their digests since.
cat >/tmp/home/.config/rpm/macros <<'END'
%__transaction_unshare %{nil}
%__transaction_systemd_inhibit %{nil}
%__transaction_syslog %{nil}
%__transaction_audit %{nil}
%_pkgverify_level none
%_netsharedpath /sys:/proc:/dev
END
cp /tmp/home/.config/rpm/macros /tmp/home/.rpmmacros
options='--setopt=reposdir=/none --setopt=pluginpath=/none --setopt=plugins=False --setopt=cachedir=/tmp/cache
 --setopt=system_cachedir=/tmp/cache --setopt=logdir=/tmp/logs --setopt=keepcache=False --setopt=gpgcheck=False
 --setopt=pkg_gpgcheck=False --setopt=localpkg_gpgcheck=False'
words() { tr '\n' ' ' <"/in/$1"; }
if command -v dnf5 >/dev/null; then dnf=dnf5; else dnf=dnf; fi
"""

_RESOLVE = r""". /in/settings.sh
: >/out/wanted; : >/out/asked; : >/out/removed; : >/out/complaint
names() { rpm -qa --qf '%{NAME}\n' | sort -u; }
quiet='--nodeps --noscripts --notriggers --justdb'
if [ -e /in/below ]; then
    rpm -U $quiet --force --ignoresize --nosignature --nodigest $(find /in/below -name '*.rpm' | sort)
fi
for name in $(words gone); do ! rpm -q "$name" >/dev/null 2>&1 || rpm -e $quiet "$name"; done
if [ "$dnf" = dnf ]; then
    python=$(command -v python3 || echo /usr/libexec/platform-python)
    "$python" /in/resolve.py >/dev/null 2>/out/complaint || [ -s /out/complaint ] || echo "dnf failed" >/out/complaint
    exit 0
fi
options="$options --setopt=install_weak_deps=$(words weak)"
for folder in /in/repositories/*; do
    number=${folder##*/}
    repositories="${repositories:-} --repofrompath=r$number,file://$folder --setopt=r$number.gpgcheck=False"
done
if [ -s /in/remove ]; then
    names >/tmp/before
    if ! dnf5 -yq $options --setopt=tsflags=justdb,noscripts remove --no-autoremove $(words remove) >/tmp/said 2>&1; then
        cat /tmp/said >/out/complaint
        exit 0
    fi
    names >/tmp/after
    comm -23 /tmp/before /tmp/after >/out/removed
fi
[ -s /in/install ] || exit 0
# What `download` resolves may conflict; `install` says so, and says no to itself.
dnf5 -q $options $repositories --assumeno install $(words install) >/tmp/said 2>&1 || :
if grep -q 'Failed to resolve the transaction' /tmp/said; then cp /tmp/said /out/complaint; exit 0; fi
download="dnf5 -q $options $repositories download --url"
if ! { $download --resolve $(words install) >/out/wanted && $download $(words install) >/out/asked; } 2>/tmp/said
then
    { echo "failed"; cat /tmp/said; } >/out/complaint
fi
"""

_RESOLVE_4 = r'''"""Asks dnf 4 by its own API, which every dnf 4 has: the command that would print a plan is a plugin of it."""
import os
import sys

import dnf
import dnf.rpm


def words(name):
    with open("/in/" + name) as file:
        return file.read().split()


def main():
    base = dnf.Base()
    conf = base.conf
    conf.read()
    conf.reposdir, conf.cachedir, conf.logdir, conf.plugins = ["/none"], "/tmp/cache", "/tmp/logs", False
    conf.install_weak_deps, conf.clean_requirements_on_remove = words("weak") == ["True"], False
    conf.substitutions["releasever"] = dnf.rpm.detect_releasever("/") or ""
    places = {}
    for number in sorted(os.listdir("/in/repositories")):
        place = "file:///in/repositories/" + number
        repo = base.repos.add_new_repo("r" + number, conf, baseurl=[place])
        repo.gpgcheck = repo.repo_gpgcheck = False
        places["r" + number] = place
    base.fill_sack(load_system_repo=True)
    unknown = []
    for word in words("install"):
        try:
            base.install(word)
        except dnf.exceptions.MarkingError:
            unknown.append(word)
    for word in words("remove"):
        try:
            base.remove(word)
        except dnf.exceptions.MarkingError:
            unknown.append(word)
    if unknown:
        sys.exit("No match for argument: " + unknown[0])
    try:
        base.resolve()
    except dnf.exceptions.DepsolveError as error:
        sys.exit(str(error))
    transaction = base.transaction or []
    installed = list(getattr(transaction, "install_set", []))
    replaced = {package.name for package in installed}
    write("wanted", (places[p.repoid] + "/" + p.location for p in installed))
    users = set()
    for word in words("install"):
        users |= {p.name for p in dnf.subject.Subject(word).get_best_query(base.sack)}
    write("asked", (places[p.repoid] + "/" + p.location for p in installed if p.name in users))
    write("removed", (p.name for p in getattr(transaction, "remove_set", []) if p.name not in replaced))


def write(name, lines):
    with open("/out/" + name, "w") as file:
        file.write("".join(line + "\n" for line in lines))


main()
'''

_INSTALL = (
    r""". /in/settings.sh
[ ! -s /in/removed ] || $dnf -yq $options --setopt=clean_requirements_on_remove=False remove $(words removed)
if [ -e /in/rpms ]; then
    $dnf -yq $options --setopt=install_weak_deps=False install $(find /in/rpms -name '*.rpm' | sort)
fi
if [ -s /in/dependencies ]; then
    if [ "$dnf" = dnf5 ]; then dnf5 -yq $options mark dependency $(words dependencies)
    else dnf -yq $options mark remove $(words dependencies); fi
fi
rpm -qa >/dev/null
# SQLite's log beside the database: empty files, so that rpm can read it where nothing can be written.
for base in /usr/lib/sysimage/rpm /var/lib/rpm; do
    [ -e $base/rpmdb.sqlite-wal ] || continue
    [ ! -s $base/rpmdb.sqlite-wal ] || { echo "$base: the log of the database was not worked in" >&2; exit 1; }
    : >$base/rpmdb.sqlite-shm
done
"""
    + SETTLED
)
