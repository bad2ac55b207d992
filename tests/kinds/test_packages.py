"""Debian for real, out of the machine's mirror: resolved, installed, equal; and what cannot be resolved."""

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_archive import make_tar
from small_locker import Made, SmallLocker

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import InputError
from kairosbuild.families.below import look_at
from kairosbuild.graph.node import Input, Locked, Material
from kairosbuild.kinds.base import Base, BaseSpec, DebianSpec
from kairosbuild.kinds.packages import Packages, PackagesSpec
from kairosbuild.oci.extract import extract
from kairosbuild.oci.index import Index
from kairosbuild.sources import apthelper, mirrors
from kairosbuild.store.store import Store

BASE = BaseSpec(debian=DebianSpec(suite="trixie"))
SPEC = PackagesSpec(on="base", install=("dbus",))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallLocker]:
    store = Store(tmp_path_factory.mktemp("real"))
    found = mirrors.find(environ=os.environ)
    yield SmallLocker(store, found, helper=apthelper.find())
    for tree in list(store.trees.root.iterdir()):
        store.trees.destroy(tree)


@pytest.fixture(scope="module")
def base(real: SmallLocker) -> Locked:
    return Base().lock(BASE, real)


def put(locker: SmallLocker, data: bytes) -> Path:
    return locker.path(locker.put_bytes(data))


def on(real: SmallLocker, below: Locked, kind: str = "base") -> SmallLocker:
    """The same locker with a node below."""
    more = SmallLocker(
        real.store, real.loader.mirrors, upstream={"on": [(kind, None, below)]}, helper=apthelper.find()
    )
    more._tools = real._tools
    return more


def test_a_base_is_locked_to_files(base: Locked) -> None:
    names = [package["name"] for package in base.data["packages"]]
    assert {"base-files", "dpkg", "libc6", "perl-base"} <= set(names)
    assert "apt" not in names and len(names) < 80
    assert [m.digest for m in base.materials] == [package["digest"] for package in base.data["packages"]]
    assert all(m.uri.startswith(("debian:pool/", "debian-security:pool/")) for m in base.materials)
    assert [one["suite"] for one in base.data["repositories"]] == [
        "trixie",
        "trixie-updates",
        "trixie-security",
    ]


def test_only_what_is_missing(real: SmallLocker, base: Locked) -> None:
    locked = Packages().lock(SPEC, on(real, base))
    names = {package["name"] for package in locked.data["packages"]}
    assert {"dbus", "libdbus-1-3"} <= names
    assert not names & {package["name"] for package in base.data["packages"]}
    unpacked = [name for step, some in locked.data["steps"] if step == "unpack" for name in some]
    assert sorted(unpacked) == sorted(names)
    more = Packages().lock(PackagesSpec(on="x", install=("dbus", "mount")), on(real, locked, "packages"))
    assert [package["name"] for package in more.data["packages"]] == ["mount"]


def test_no_metadata_needed_for_what_left_the_index(real: SmallLocker, base: Locked) -> None:
    """A base that was locked before an update: the deb itself says what it is."""
    deb = next(m for m in base.materials if "/hostname_" in m.uri)
    real.get([deb])
    data = real.fetch(deb.uri, digest=deb.digest, size=deb.size)
    gone = Material(f"file:{data}#.deb", deb.digest, deb.size)
    rest = tuple(m for m in base.materials if m is not deb)
    locked = Packages().lock(SPEC, on(real, Locked(base.data, (*rest, gone))))
    assert "hostname" not in {package["name"] for package in locked.data["packages"]}


BAD = {
    "unknown": (PackagesSpec(on="b", install=("dbuss",)), "package-unknown"),
    "version": (PackagesSpec(on="b", install=("dbus=0.1",)), "package-conflict"),
    "conflict": (PackagesSpec(on="b", install=("nullmailer", "exim4-daemon-light")), "package-conflict"),
    "apt's own word for removal": (PackagesSpec(on="b", install=("dbus", "dpkg-")), "package-unknown"),
    "option": (PackagesSpec(on="b", install=("--reinstall",)), "package-name"),
    "nothing": (PackagesSpec(on="b"), "packages-empty"),
}


@pytest.mark.parametrize(("spec", "reason"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_resolved(real: SmallLocker, base: Locked, spec: PackagesSpec, reason: str) -> None:
    with pytest.raises(InputError) as error:
        Packages().lock(spec, on(real, base))
    assert error.value.reason == reason
    if reason.startswith("package-"):
        assert spec.install[-1].split("=")[0] in str(error.value)


@pytest.mark.parametrize(
    ("kind", "files", "reason"),
    [
        ("run", {}, "packages-upstream"),
        ("base", {"etc/os-release": b"VERSION_CODENAME=sid\n"}, "packages-upstream"),
        ("base", {"var/lib/dpkg/status": b"Package: a\n"}, "packages-release"),
    ],
)
def test_what_nothing_can_be_put_on(locker: Made, kind: str, files: dict[str, bytes], reason: str) -> None:
    layer = gzip.compress(make_tar(files))
    material = Material("oci://h.example/a@x", of_bytes(layer).digest, len(layer))
    below = Locked({"manifest": "", "system": look_at([put(locker(), layer)]).json()}, (material,))
    made = locker(upstream={"on": [(kind, None, below)]}, images={material.uri: layer})
    with pytest.raises(InputError) as error:
        Packages().lock(SPEC, made)
    assert error.value.reason == reason


def test_the_database_of_an_image(real: SmallLocker) -> None:
    status = b"Package: dbus\nStatus: install ok installed\nArchitecture: amd64\nVersion: 99\n\n"
    files = {"var/lib/dpkg/status": status, "usr/lib/os-release": b'VERSION_CODENAME="trixie"\n'}
    layer = real.put_bytes(gzip.compress(make_tar(files)))
    system = look_at([real.path(layer)]).json()
    below = Locked(
        {"manifest": "", "system": system}, (Material("oci://h.example/a@x", layer.digest, layer.size),)
    )
    locked = Packages().lock(PackagesSpec(on="base", install=("dbus", "libmnl0")), on(real, below))
    names = {package["name"] for package in locked.data["packages"]}
    assert "libmnl0" in names and "libc6" in names and "dbus" not in names


STARTS = {
    "image": ["mkfs.erofs -V", "depmod -V", "xz --version"],
    "boot": ["/usr/bin/busybox true"],
    "qemu": ["qemu-system-x86_64 --version", "test -s /usr/share/OVMF/OVMF_CODE_4M.fd"],
    "apt": ["apt-get --version", "dpkg --version"],
    "kernel": ["x86_64-linux-gnu-gcc --version", "make --version", "bison --version", "flex --version"],
    "buildah": ["buildah --version"],
    "sandbox": ["bwrap --version", "unshare --version"],
}


@pytest.mark.slow
@pytest.mark.parametrize("purpose", STARTS)
def test_tools_start_unconfigured(real: SmallLocker, purpose: str) -> None:
    from kairosbuild.graph.action import Action

    shell = "/usr/bin/busybox" if purpose == "boot" else "/bin/sh"
    words = ("sh", "-ec", "; ".join(STARTS[purpose]))
    command = (shell, *words) if purpose == "boot" else (shell, *words[1:])
    done = real.execute(Action((*command,), (real.tools(purpose),)))
    assert b"not found" not in done.log


@pytest.mark.slow
def test_installed_for_real_and_equal(real: SmallLocker, base: Locked, tmp_path: Path) -> None:
    built = real.build(Base(), BASE)
    below = {"on": (Input("base", "base", built),)}
    above = on(real, base)
    first = above.build(Packages(), SPEC, inputs=below)
    assert above.build(Packages(), SPEC, inputs=below) == first
    lower = Index.loads(real.path(built["index"]).read_bytes())
    upper = Index.loads(real.path(first["index"]).read_bytes())
    assert lower["usr/sbin/unix_chkpwd"].entry.gid == 42
    assert lower["etc/machine-id"].entry.size == 0
    assert lower["bin"].entry.target == "usr/bin"
    assert "usr/bin/dbus-daemon" in upper and "usr/bin/bash" not in upper
    assert upper["usr/lib/dbus-1.0/dbus-daemon-launch-helper"].entry.mode == 0o4754
    for left in ("usr/sbin/policy-rc.d", "var/cache/ldconfig/aux-cache", "var/lib/dpkg/status-old"):
        assert left not in lower and left not in upper
    extract(real.path(built["layer"]), tmp_path, owners="dropped", overlay=False)
    extract(real.path(first["layer"]), tmp_path, owners="dropped", overlay=False)
    if shutil.which("dpkg"):
        audit = ["dpkg", f"--root={tmp_path}", "--audit"]
        assert not subprocess.run(audit, capture_output=True, check=True).stdout
    status = (tmp_path / "var/lib/dpkg/status").read_text()
    assert "Package: dbus\nStatus: install ok installed" in status
    assert all("ok installed" in line for line in status.splitlines() if line.startswith("Status:"))

    over = on(real, above_lock := Packages().lock(SPEC, above), "packages")
    gone = PackagesSpec(on="dbus", remove=("dbus",))
    locked = Packages().lock(gone, over)
    assert (locked.data["removed"], locked.data["packages"]) == (["dbus"], [])
    outputs = over.build(Packages(), gone, inputs={"on": (Input("dbus", "packages", first),)})
    index = Index.loads(real.path(outputs["index"]).read_bytes())
    assert "etc/default/.wh.dbus" in set(index.paths())
    again = on(real, locked, "packages")
    names = {p["name"] for p in Packages().lock(SPEC, again).data["packages"]}
    assert "dbus" in names and "dbus-daemon" not in names
    assert above_lock.data["removed"] == []


@pytest.mark.slow
def test_an_ssh_server_makes_its_host_keys_on_the_machine(real: SmallLocker, base: Locked) -> None:
    built, above = real.build(Base(), BASE), on(real, base)
    spec = PackagesSpec(on="base", install=("openssh-server",))
    server = above.build(Packages(), spec, inputs={"on": (Input("base", "base", built),)})
    paths = set(Index.loads(real.path(server["index"]).read_bytes()).paths())
    assert "usr/lib/systemd/system/ssh.service.d/host-keys.conf" in paths
    assert not [path for path in paths if path.startswith("etc/ssh/ssh_host_")]
