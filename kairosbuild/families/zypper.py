"""openSUSE and its kin: the base's own zypper resolves over signed repositories and installs, both offline."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
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
    from kairosbuild.sources.repomd import Metadata, Repository
    from kairosbuild.sources.stanza import Package

_KEYS = "usr/lib/rpm/gnupg/keys/"
_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}
_WORD = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.+:~^/()=<>-]*")
_ADDED = ("to-install", "to-upgrade", "to-downgrade", "to-reinstall", "to-change-arch")
_DROPPED = (
    *TRACES, *IDENTITIES,
    "var/log/zypp/*", "var/log/zypper.log", "var/cache/zypp/*", "var/lib/zypp/AnonymousUniqueId",
    "var/lib/zypp/LastDistributionFlavor", "usr/lib/sysimage/rpm/.rpm.lock", "var/lib/rpm/.rpm.lock",
)  # fmt: skip

_SETTINGS = r"""set -eu
mkdir -p /tmp/home/.config/rpm /tmp/repos /var/lib/zypp
export HOME=/tmp/home SYSTEMD_OFFLINE=1
# As for dnf: the sandbox is there already, and signatures and digests were checked.
cat >/tmp/home/.config/rpm/macros <<'END'
%__transaction_unshare %{nil}
%__transaction_systemd_inhibit %{nil}
%__transaction_syslog %{nil}
%__transaction_audit %{nil}
%_pkgverify_level none
%_netsharedpath /sys:/proc:/dev
END
cp /tmp/home/.config/rpm/macros /tmp/home/.rpmmacros
words() { tr '\n' ' ' <"/in/$1"; }
repository() { # repository NAME ADDRESS TYPE
    printf '[%s]\nname=%s\nenabled=1\nautorefresh=1\nbaseurl=%s\ntype=%s\n' "$1" "$1" "$2" "$3"
    printf 'gpgcheck=0\nrepo_gpgcheck=0\npkg_gpgcheck=0\n'
} >"/tmp/repos/$1.repo"
z() {
    zypper --non-interactive --no-gpg-checks --reposd-dir /tmp/repos --cache-dir /tmp/cache "$@" </dev/null
}
"""
_RESOLVE = (
    _SETTINGS
    + r"""quiet='--nodeps --noscripts --notriggers --justdb'
if [ -e /in/below ]; then
    rpm -U $quiet --force --ignoresize --nosignature --nodigest $(find /in/below -name '*.rpm' | sort)
fi
for name in $(words gone); do ! rpm -q "$name" >/dev/null 2>&1 || rpm -e $quiet "$name"; done
for folder in /in/repositories/*; do repository "r${folder##*/}" "file://$folder" rpm-md; done
z --xmlout install --dry-run $(words weak) -- $(words wanted) >/out/plan 2>/out/said || echo "failed $?" >>/out/said
"""
)
_INSTALL = (
    _SETTINGS
    + r"""[ ! -e /in/rpms ] || repository locked dir:/in/rpms plaindir
z install --no-recommends --allow-unsigned-rpm -- $(words wanted)
[ ! -e /var/lib/zypp/AutoInstalled ] || sed -i '/^#/d' /var/lib/zypp/AutoInstalled # a comment tells the time
rpm -qa >/dev/null
for base in /usr/lib/sysimage/rpm /var/lib/rpm; do
    [ -e $base/rpmdb.sqlite-wal ] || continue
    [ ! -s $base/rpmdb.sqlite-wal ] || { echo "$base: the log of the database was not worked in" >&2; exit 1; }
    : >$base/rpmdb.sqlite-shm
done
"""
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
        for word in (*request.install, *request.remove):
            if not _WORD.fullmatch(word):
                raise InputError(
                    f"{word!r} is not the name of a package",
                    reason="package-name",
                    hint="NAME or NAME=VERSION",
                )
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = _open(repositories, below, locker)
        packages, removed = _resolve(request, below, every, locker)
        if surprising := sorted(set(removed) - set(request.remove)):
            raise InputError(
                f"to do that, zypper would remove {' '.join(surprising)}",
                reason="package-removal",
                hint="list it under `remove` if that is wanted",
            )
        data = {
            "packages": [package.json() for package in packages],
            "wanted": _wanted(request),
            "removed": removed,
            "repositories": [one.json() for one in repositories],
        }
        return Locked(data, _materials(packages))

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """Let the stack's zypper install out of a folder of just these files."""
        data = part.data
        files = {
            f"rpms/{material.uri.rpartition('/')[2]}": Blob(material.digest, material.size)
            for material in part.materials
        }
        files["wanted"] = task.put_bytes("".join(f"{word}\n" for word in data["wanted"]).encode())
        return Action(
            ("/bin/sh", "-c", _INSTALL),
            tuple(one.layer for one in below),
            files,
            cwd="/",
            layer=True,
            drop=_DROPPED,
            platform=task.platform,
        )

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The newest package of this name, such as kernel-default: kernel and modules are in one."""
        repositories = _repositories(request.release, request.repositories, below, locker)
        every = _open(repositories, below, locker)
        found = [one.package for metadata in every for one in metadata.named(request.package)]
        if request.version:
            found = [one for one in found if one.version == request.version]
        if not found:
            raise _unknown(request.package, every)
        data = {"packages": [found[0].json()], "image": found[0].name}
        return Locked(data, _materials(found[:1]))

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """Not yet. Raises InputError (`drivers-family`)."""
        raise InputError(
            "drivers are taken from distributions of the family apt only",
            reason="drivers-family",
            hint="install the modules' packages by a node of kind packages",
        )

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
        arch = _ARCH.get(locker.platform.split("/")[1], "")
        paths = [f"distribution/leap/{version}/repo/oss/{arch}"]
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
    from kairosbuild.sources.rpm import read

    inputs: dict[str, Blob] = {}
    for number, metadata in enumerate(every):
        for path, content in metadata.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            inputs[f"repositories/{number}/{path}"] = locker.put_bytes(data)
    there = {read(locker.fetch(m.uri, digest=m.digest, size=m.size)).name: m for m in below.packages}
    for name, material in there.items():
        if name not in below.removed:
            inputs[f"below/{name}.rpm"] = Blob(material.digest, material.size)
    lists = {
        "gone": sorted(below.removed),
        "wanted": _wanted(request),
        "weak": ["--recommends" if request.weak else "--no-recommends"],
    }
    inputs |= {
        name: locker.put_bytes("".join(f"{w}\n" for w in words).encode()) for name, words in lists.items()
    }
    action = Action(
        ("/bin/sh", "-c", _RESOLVE),
        (tree(below, locker),),
        inputs,
        ("plan", "said"),
        cwd="/",
        layer=True,
        drop=("*",),
        platform=locker.platform,
    )
    done = locker.execute(action).outputs
    plan, said = (locker.path(done[name]).read_text("utf-8", "replace") for name in ("plan", "said"))
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
            return _unknown(match[1] or match[2], every)
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


def _unknown(name: str, every: Sequence[Metadata]) -> InputError:
    near = [known for metadata in every for known in metadata.names() if known[:2] == name[:2]]
    hint = nearest(name, near) if near else ""
    return InputError(f"there is no package {name!r}", reason="package-unknown", hint=hint)


def _materials(packages: Sequence[Package]) -> tuple[Material, ...]:
    return tuple(Material(package.uri, package.digest, package.size) for package in packages)
