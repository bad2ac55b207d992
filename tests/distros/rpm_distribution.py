"""A whole RPM distribution for the tests: repositories, a key that signs, and a base image, out of Debian sid.

`made(FEDORA)` gives the folder that it lies in, made once and kept with the peers. It has `repos/`, to be
served, `image/`, an OCI layout of the base, and `key/`. What it is and what it is not: docs/families.md.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from distros.rpms import Rpm, Signer, build, evr, of_deb, repository
from peers import CACHE

from kairosbuild.core.digest import Blob
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.graph.action import Action
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, write_layer
from kairosbuild.oci.merge import merge
from kairosbuild.sources.deb import members, merged_links
from kairosbuild.sources.debian import Suite, closure, open_archive
from kairosbuild.sources.download import Downloader, Wanted
from kairosbuild.sources.mirrors import find
from kairosbuild.sources.spool import with_parents
from kairosbuild.sources.stanza import Package
from kairosbuild.store.store import Store

_KEPT = 6 * 3600.0  # seconds; another working copy may be at another version
EPOCH = 1_700_000_000
SUITE = "sid"
WITHOUT = (
    "adduser", "cdebconf", "debconf", "debconf-2.0", "debianutils", "debugedit", "dirmngr", "gnupg", "gnupg-l10n",
    "gpg", "gpg-agent", "gpgsm", "gpgconf", "init-system-helpers", "install-info", "libpython3-stdlib",
    "pinentry-curses", "sensible-utils", "ucf", "dpkg", "perl-base", "python3", "python3-minimal", "libappstream5",
    "openssl-provider-legacy", "linux-initramfs-tool", "initramfs-tools", "sysvinit-utils", "base-passwd",
)  # fmt: skip
"""What maintainer scripts need, and what is left out to keep it small."""
BASE = (
    "bash",
    "coreutils",
    "rpm",
    "base-files",
    "findutils",
    "gawk",
    "grep",
    "sed",
    "tar",
    "gzip",
    "libc-bin",
    "ncurses-base",
)
MORE = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus-broker",
    "iproute2",
    "util-linux",
    "mount",
    "login",
    "passwd",
    "kmod",
    "less",
    "jq",
    "nano",
)
KERNEL = "linux-image-cloud-amd64"
_COMPILING = ("make", "mawk", "libelf1t64", "libssl3t64", "pahole")
"""What kernel-devel's own programs and a compilation of modules take, beside the compiler that the headers name."""
NAMES = {
    "libc6": "glibc", "libc-bin": "glibc-common", "udev": "systemd-udev", "iproute2": "iproute",
    "passwd": "shadow-utils", "base-files": "filesystem", "libsystemd0": "systemd-libs", "python3-minimal": "python3-minimal",
}  # fmt: skip
"""What the distributions that these stand for call a package."""
_SCRIPTS: Mapping[str, Mapping[str, str]] = {
    "glibc-common": {"%transfiletriggerin -P 2000000 -- /usr/lib": "/sbin/ldconfig"},
    "systemd": {
        "%transfiletriggerin -P 1000100 -- /usr/lib/sysusers.d": "systemd-sysusers || :",
        "%post": "systemctl preset-all >/dev/null 2>&1 || :\nsystemctl set-default multi-user.target >/dev/null 2>&1 || :",
    },
    "dbus-broker": {"%post": "systemctl preset dbus-broker.service >/dev/null 2>&1 || :"},
    "systemd-udev": {"%post": "systemd-hwdb update >/dev/null 2>&1 || :"},
    "udev": {"%post": "systemd-hwdb update >/dev/null 2>&1 || :"},
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Which distribution it stands for. `repositories` are paths beneath `repos/`: all packages are in the first."""

    id: str
    version: str
    client: tuple[str, ...]
    repositories: tuple[str, ...]
    key: str
    keys: str = "etc/pki/rpm-gpg"
    like: str = ""
    kernel: tuple[str, ...] = ("kernel-core", "kernel-modules-core")
    database: str = "/usr/lib/sysimage/rpm"
    signed_metadata: bool = False
    without: tuple[str, ...] = WITHOUT
    more: tuple[str, ...] = ()
    devel: bool = False  # with a compiler, and the kernel's headers as kernel-devel has them
    names: Mapping[str, str] = field(default_factory=lambda: NAMES)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """The base image as the layout has it."""
        return f"{self.id}:{self.version}"


FEDORA = Shape(
    "fedora", "43", ("dnf5",),
    ("fedora/43/Everything/x86_64/os", "fedora-updates/43/Everything/x86_64"),
    "RPM-GPG-KEY-fedora-43-primary",
)  # fmt: skip
FEDORA_DEVEL = replace(FEDORA, devel=True)
ROCKY = Shape(
    "rocky", "9.6", ("dnf",),
    ("rocky/9/BaseOS/x86_64/os", "rocky/9/AppStream/x86_64/os"),
    "RPM-GPG-KEY-Rocky-9",
    like="rhel centos fedora",
    database="/var/lib/rpm",
    without=tuple(n for n in WITHOUT if n not in ("libpython3-stdlib", "python3", "python3-minimal")),
)  # fmt: skip
ALMALINUX = replace(
    ROCKY,
    id="almalinux",
    repositories=("almalinux/9/BaseOS/x86_64/os", "almalinux/9/AppStream/x86_64/os"),
    key="RPM-GPG-KEY-AlmaLinux-9",
)
TUMBLEWEED = Shape(
    "opensuse-tumbleweed", "latest", ("zypper",),
    ("opensuse/tumbleweed/repo/oss",),
    "opensuse.asc",
    keys="usr/lib/rpm/gnupg/keys",
    like="opensuse suse",
    kernel=("kernel-default",),
    signed_metadata=True,
    more=("util-linux-extra",),
    names=NAMES | {"udev": "udev", "iproute2": "iproute2", "util-linux-extra": "util-linux-systemd"},
)  # fmt: skip


def made(shape: Shape) -> Path:
    """The distribution's folder; made when there is none for this code and this day's sid."""
    here = Path(__file__).parent
    code = b"".join((here / name).read_bytes() for name in ("rpms.py", "rpm_distribution.py"))
    place = CACHE / "distros" / f"{shape.id}-{hashlib.sha256(code + repr(shape).encode()).hexdigest()[:12]}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{shape.id}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            for old in place.parent.glob(f"{shape.id}-*"):
                if time.time() - old.stat().st_mtime > _KEPT:
                    shutil.rmtree(old)
            work = place.with_name(f".{place.name}.new")
            shutil.rmtree(work, ignore_errors=True)
            _Making(shape, work).all()
            work.rename(place)
    return place


class _Making:
    def __init__(self, shape: Shape, work: Path) -> None:
        self.shape, self.work, self.stage = shape, work, work / "stage"
        work.mkdir(parents=True)
        self.store = Store(work / "store")
        self.loader = Downloader(self.store.cas, find(environ=os.environ))
        self.archive = open_archive([Suite("debian", SUITE)], "amd64", self._fetch)
        self.signer = Signer(work / "key", f"{shape.id} test <{shape.id}@example.org>")

    def all(self) -> None:
        """Everything, in order."""
        more = self.shape.more + ((self._headers[1], *_COMPILING) if self.shape.devel else ())
        base, every = (
            self._closure(BASE + self.shape.client),
            self._closure(BASE + self.shape.client + MORE + more),
        )
        rpms = self._rpms(every)
        names = {self.shape.names.get(name, name) for name in base} | {"setup", self._release}
        files = self._build(rpms)
        self._image([one for one in rpms if one.name in names], files)
        for left in (self.stage, self.work / "store"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def _release(self) -> str:
        return f"{self.shape.id}-release"

    def _closure(self, names: tuple[str, ...]) -> list[str]:
        return [package.name for package in closure(self.archive.index, names, self.shape.without)]

    def _rpms(self, names: list[str]) -> list[Rpm]:
        kernel = self._kernel_debs()
        files = self._debs([*names, *kernel])
        called = {name: self.shape.names.get(name, name) for name in names}
        if self.shape.devel:
            called[self._headers[1]] = "gcc"
        rpms = [of_deb(self.archive, name, files[name], self.stage, called) for name in names]
        for rpm in rpms:
            rpm.scripts = _SCRIPTS.get(rpm.name, {})
            rpm.requires += {
                "util-linux": ("mount", "login"),
                "util-linux-systemd": ("util-linux",),
                "systemd-udev": ("kmod",),
                "udev": ("kmod",),
                "gcc": _COMPILING,
            }.get(rpm.name, ())
            rpm.provides += ("/bin/sh", "/sbin/ldconfig") if rpm.name == "bash" else ()
            for path in [path for path in rpm.files if _unwanted(path)]:
                del rpm.files[path]
        return [
            *rpms,
            self._setup(),
            self._about(),
            *self._kernel([files[n] for n in kernel], kernel),
            *([self._devel()] if self.shape.devel else []),
        ]

    def _debs(self, names: list[str]) -> dict[str, Path]:
        packages = {name: self.archive.newest(name) for name in names}
        got = self.loader.get([Wanted(p.uri, p.digest, p.size) for p in packages.values()])
        return {name: self.store.cas.path(got[p.uri].digest) for name, p in packages.items()}

    # -- packages that Debian has no equal of -------------------------------------------------------

    def _setup(self) -> Rpm:
        """Users, groups and the links of merged /usr, as the package `setup` of these distributions has them."""
        owners = self._masters()
        shadow = "".join(
            f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in owners["passwd"].splitlines()
        )
        rpm = Rpm("setup", "1", "1")
        texts = {
            "etc/passwd": owners["passwd"].replace(":*:", ":x:"), "etc/group": owners["group"].replace(":*:", ":x:"),
            "etc/shadow": shadow, "etc/nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nshadow: files\nhosts: files dns\n",
            "etc/machine-id": "", "etc/hosts": "127.0.0.1 localhost\n",
        }  # fmt: skip
        for path, text in texts.items():
            rpm.add(path, text.encode(), self.stage, 0o640 if path == "etc/shadow" else 0o644)
        for entry, _ in merged_links("amd64"):
            rpm.files[entry.path] = entry, None
        rpm.add("usr/lib64/.keep", b"", self.stage)
        rpm.add("usr/bin/awk", "gawk", self.stage)
        rpm.add("usr/bin/sh", "bash", self.stage)
        return rpm

    def _masters(self) -> dict[str, str]:
        file = self._debs(["base-passwd"])["base-passwd"]
        found = {}
        for entry, content in members(file):
            name = entry.path.removeprefix("usr/share/base-passwd/").removesuffix(".master")
            if content is not None and name in ("passwd", "group"):
                found[name] = content.read().decode()
        return found

    def _about(self) -> Rpm:
        """What the distribution says it is, its key, and where its database lies."""
        shape = self.shape
        lines = [f'NAME="{shape.id.title()} test"', f"ID={shape.id}", f"VERSION_ID={shape.version}"]
        lines += [f'ID_LIKE="{shape.like}"'] if shape.like else []
        lines += [f'PRETTY_NAME="{shape.id.title()} {shape.version}, a shape made of Debian {SUITE}"']
        rpm = Rpm(self._release, shape.version, "1")
        rpm.add("usr/lib/os-release", "\n".join([*lines, ""]).encode(), self.stage)
        rpm.add("etc/os-release", "../usr/lib/os-release", self.stage)
        rpm.add(f"{shape.keys}/{shape.key}", self.signer.certificate(), self.stage)
        rpm.add("etc/rpm/macros.dist", f"%_dbpath {shape.database}\n".encode(), self.stage)
        for path, content in shape.files.items():
            rpm.add(path, content, self.stage)
        return rpm

    def _kernel_debs(self) -> list[str]:
        from kairosbuild.families.apt import _real, _with_parts
        from kairosbuild.families.family import KernelRequest

        return [one.name for one in _with_parts(_real(KernelRequest(KERNEL), self.archive), self.archive)]

    def _kernel(self, debs: list[Path], names: list[str]) -> list[Rpm]:
        """A kernel in two packages or one, its image beside its modules, and one that only names them."""
        _, version, release = evr(self.archive.newest(names[0]).version)
        parts = [Rpm(name, version, release) for name in self.shape.kernel]
        core, modules = parts[0], parts[-1]
        folder = self.stage / "kernel"
        folder.mkdir(parents=True)
        uname = ""
        for deb in debs:
            for number, (entry, content) in enumerate(members(deb)):
                place = None
                if content is not None:
                    place = folder / f"{deb.name}-{number}"
                    with place.open("wb") as out:
                        shutil.copyfileobj(content, out)
                if entry.path.startswith("usr/lib/modules/") and "/kernel" in entry.path:
                    uname = entry.path.split("/")[3]
                    modules.files[entry.path] = entry, place
                elif entry.path.startswith(("usr/lib/modules/", "boot/")) and entry.type == "file":
                    core.files[entry.path] = entry, place
        assert uname
        for path in [path for path in core.files if path.startswith("boot/")]:
            entry, place = core.files.pop(path)
            name = f"usr/lib/modules/{uname}/{path.removeprefix('boot/').removesuffix(f'-{uname}')}"
            core.files[name] = replace(entry, path=name), place
        called = uname.replace("-", "_")  # two of them are no version to rpm
        if core is modules:
            return [core]
        core.requires = (f"{modules.name}-uname-r = {called}",)
        core.provides = (f"{core.name}-uname-r = {called}",)
        modules.provides = (f"{modules.name}-uname-r = {called}",)
        whole = Rpm("kernel", version, release, requires=(f"{core.name}-uname-r = {called}",))
        return [core, modules, whole]

    def _devel(self) -> Rpm:
        """The headers of that kernel where Fedora has them: usr/src/kernels/RELEASE, and a link beside the modules."""
        image, (packages, _) = self._image_deb, self._headers
        _, version, release = evr(image.version)
        rpm = Rpm("kernel-devel", version, release, requires=("make",))
        uname = image.name.removeprefix("linux-image-").removesuffix("-unsigned")
        folder = self.stage / "kernel-devel"
        folder.mkdir(parents=True)
        for name, deb in self._debs([one.name for one in packages]).items():
            for number, (entry, content) in enumerate(members(deb)):
                if not entry.path.startswith(("usr/src/", "usr/lib/linux-kbuild")):
                    continue
                place = None
                if content is not None:
                    place = folder / f"{name}-{number}"
                    with place.open("wb") as out:
                        shutil.copyfileobj(content, out)
                rpm.files[entry.path] = entry, place
        rpm.add(
            f"usr/src/kernels/{uname}", f"../linux-headers-{uname}", self.stage
        )  # they know where they are
        rpm.add(f"usr/lib/modules/{uname}/build", f"/usr/src/kernels/{uname}", self.stage)
        return rpm

    @property
    def _image_deb(self) -> Package:
        """The package that stands for the kernel."""
        (name,) = (one for one in self._kernel_debs() if one.startswith("linux-image-"))
        return self.archive.newest(name)

    @cached_property
    def _headers(self) -> tuple[list[Package], str]:
        """The packages of its headers, and the compiler they name."""
        from kairosbuild.families.apt_drivers import headers

        return headers(self._image_deb, self.archive)

    # -- repositories and the image -------------------------------------------------------------------

    def _build(self, rpms: list[Rpm]) -> list[Path]:
        owners = self._masters()
        ids = {
            kind: {int(line.split(":")[2]): line.split(":")[0] for line in text.splitlines()}
            for kind, text in owners.items()
        }
        first, *others = (self.work / "repos" / path for path in self.shape.repositories)
        files = build(rpms, first / "Packages", ids["passwd"], ids["group"])
        self.signer.sign(files)
        for folder in (first, *others):
            folder.mkdir(parents=True, exist_ok=True)
            repository(folder)
            if self.shape.signed_metadata:
                self.signer.sign_metadata(folder)
        return files

    def _image(self, rpms: list[Rpm], files: list[Path]) -> None:
        """The base: its files as they are, then its own rpm over them, so that it knows what is installed."""
        wanted = {f"{one.name}-{one.version}-{one.release}.x86_64.rpm" for one in rpms}
        folders = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
        items: dict[str, Item] = {path: (Entry(path, "dir", mode), None) for path, mode in folders.items()}
        for rpm in rpms:
            items |= {
                path: (entry, place)
                for path, (entry, place) in rpm.files.items()
                if path not in items or entry.type != "dir"
            }
        lower = self._layer(with_parents(items))
        script = (
            "mkdir -p $DB /var/lib /var/tmp; rpm --initdb; "
            "rpm -U --force --nodeps --ignoresize -D '_pkgverify_level none' -D '__transaction_unshare %{nil}' "
            "/in/*.rpm; "
            "rm -rf /var/log/* /var/cache/*; rpm -qa | sort >/out/installed"
        ).replace("$DB", self.shape.database)
        done = LocalExecutor(self.store, epoch=EPOCH).execute(
            Action(
                ("/bin/sh", "-euc", script),
                (lower[0],),
                {file.name: self.store.cas.add_copy(file) for file in files if file.name in wanted},
                ("installed",),
                layer=True,
                drop=(f"{self.shape.database.lstrip('/')}/.rpm.lock", "run/*", "tmp/*"),
            ),
            name="base", scratch=self.store.cas.tmp(), cancel=threading.Event(),
        )  # fmt: skip
        assert done.layer is not None
        installed = self._text(done.outputs["installed"]).split()
        assert len(installed) == len(wanted), done.log.decode()
        upper = (done.layer.layer, done.layer.index)
        tar = self.work / "root.tar"
        stack = [(self._path(t), Index.loads(self._path(i).read_bytes())) for t, i in (lower, upper)]
        with tar.open("wb") as out:
            merge(stack, out, EPOCH)
        write_layout(self.work / "image", self.shape.image.partition(":")[2], tar)
        tar.unlink()

    def _layer(self, items: list[Item]) -> tuple[Blob, Blob]:
        tar = self.store.cas.tmp() / "layer.tar"
        with tar.open("wb") as out:
            index = write_layer(items, out, EPOCH)
        return self.store.cas.put_file(tar), self.store.cas.put_bytes(index)

    def _fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        return self._path(self.loader.get([Wanted(uri, digest or "", size)])[uri])

    def _path(self, blob: Blob) -> Path:
        return self.store.cas.path(blob.digest)

    def _text(self, blob: Blob) -> str:
        return self._path(blob).read_text()


def write_layout(folder: Path, tag: str, tar: Path) -> None:
    """An OCI layout with one image of one layer."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    content = tar.read_bytes()
    layer = put(gzip.compress(content, 1, mtime=0))
    config = {
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
    }  # fmt: skip
    media = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": {"mediaType": f"{media}.config.v1+json", **put(json.dumps(config).encode())},
        "layers": [{"mediaType": f"{media}.layer.v1.tar+gzip", **layer}],
    }
    about = {
        "mediaType": f"{media}.manifest.v1+json",
        **put(json.dumps(manifest).encode()),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [about]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _unwanted(path: str) -> bool:
    """Mount points, documentation, and what packages of our own bring."""
    if path in ("dev", "proc", "run", "sys", "tmp"):
        return True  # places that a sandbox, as a container, has mounted
    return path.startswith(("usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/")) or path in (
        "usr/lib/os-release", "etc/os-release", "usr/bin/awk", "etc/nsswitch.conf",
    )  # fmt: skip
