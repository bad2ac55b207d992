import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from boot_task import node
from local_archive import Archive, make_tar
from module_samples import FLAGS, SYMVERS, driver
from small_locker import Made
from small_task import SmallTask

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.families.family import System
from kairosbuild.graph.node import Locked
from kairosbuild.kinds.kernel import Kernel, KernelSpec
from kairosbuild.oci.index import Index
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.sources.deb import merged
from kairosbuild.store.store import Store

RELEASE = "6.12.9+deb13-cloud-amd64"
IMAGE = f"linux-image-{RELEASE}"
DEBIAN = System("apt", "debian")
MODULES = f"usr/lib/modules/{RELEASE}"
FILES = {
    f"boot/vmlinuz-{RELEASE}": b"MZ kernel",
    f"boot/config-{RELEASE}": b"CONFIG_EROFS_FS=m\n",
    f"boot/System.map-{RELEASE}": b"map",
    f"lib/modules/{RELEASE}/kernel/fs/erofs/erofs.ko.xz": lzma.compress(driver(f"{RELEASE}")),
    f"lib/modules/{RELEASE}/modules.builtin": b"kernel/x.ko\n",
    f"lib/modules/{RELEASE}/build": "/usr/src/linux-headers",
    f"usr/share/doc/{IMAGE}/copyright": b"GPL",
}
SPEC = KernelSpec(package="linux-image-cloud-amd64", release="sid")


@pytest.fixture
def small(archive: Archive) -> Archive:
    old = {path.replace("6.12.9", "6.12.8"): content for path, content in FILES.items()}
    archive.add(IMAGE.replace("6.12.9", "6.12.8"), "6.12.8-1", files=old)
    archive.add("linux-image-cloud-amd64", "6.12.8-1", Depends=IMAGE.replace("6.12.9", "6.12.8"))
    archive.add(IMAGE, "6.12.9-1", files=FILES, Depends="kmod, linux-initramfs-tool")
    archive.add("linux-image-cloud-amd64", "6.12.9-1", Depends=f"{IMAGE} (= 6.12.9-1)")
    archive.add("kmod")
    archive.publish("sid")
    return archive


def test_a_kernel(small: Archive, locker: Made) -> None:
    made = locker()
    outputs = made.build(Kernel(), SPEC)
    index = Index.loads(made.path(outputs["index"]).read_bytes())
    assert {path for path in index.paths() if index[path].entry.type != "dir"} == {
        f"{MODULES}/vmlinuz", f"{MODULES}/config", f"{MODULES}/System.map",
        f"{MODULES}/kernel/fs/erofs/erofs.ko.xz", f"{MODULES}/modules.builtin",
    }  # fmt: skip
    place = index[f"{MODULES}/vmlinuz"]
    assert made.path(outputs["layer"]).read_bytes()[place.data :].startswith(b"MZ kernel\0")
    assert json.loads(made.path(outputs["kernel"]).read_bytes()) == {
        "version": RELEASE, "package": IMAGE, "package version": "6.12.9-1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "forced", "lockdown"),
    [
        ("CONFIG_MODULE_SIG_FORCE", True, None),
        ("CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY", True, None),
        ("CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT", False, "secure-boot"),
        ("CONFIG_LOCK_DOWN_KERNEL_FORCE_NONE", False, None),
    ],
)
def test_whose_modules_it_takes(
    option: str, forced: bool, lockdown: str | None, archive: Archive, locker: Made
) -> None:
    archive.add(IMAGE, "6.12.9-1", files=FILES | {f"boot/config-{RELEASE}": f"{option}=y\n".encode()})
    archive.publish("sid")
    made = locker()
    outputs = made.build(Kernel(), KernelSpec(package=IMAGE, release="sid"))
    assert json.loads(made.path(outputs["abi"]).read_bytes())["forced"] is forced
    assert json.loads(made.path(outputs["kernel"]).read_bytes()).get("lockdown") == lockdown


def test_an_older_one(small: Archive, locker: Made) -> None:
    locked = Kernel().lock(KernelSpec(package=SPEC.package, release="sid", version="6.12.8-1"), locker())
    assert [package["version"] for package in locked.data["packages"]] == ["6.12.8-1"]


def test_a_release_that_splits_it(archive: Archive, locker: Made) -> None:
    boot = {path: content for path, content in FILES.items() if path.startswith("boot/v")}
    rest = {path: content for path, content in FILES.items() if "modules" in path}
    parts = {"binary": boot, "modules": rest}
    needs = ", ".join(f"linux-{part}-{RELEASE} (= 7-1)" for part in parts)
    archive.add(IMAGE, "7-1", files={"usr/share/x": b""}, Depends=f"linux-base (>= 4), {needs}")
    archive.add("linux-base", "4")
    for part, files in parts.items():
        archive.add(f"linux-{part}-{RELEASE}", "7-1", files=files)
    archive.publish("sid")
    made = locker()
    locked = Kernel().lock(KernelSpec(package=IMAGE, release="sid"), made)
    assert [p["name"].split("-")[1] for p in locked.data["packages"]] == ["binary", "image", "modules"]
    outputs = made.build(Kernel(), KernelSpec(package=IMAGE, release="sid"))
    assert f"{MODULES}/vmlinuz" in Index.loads(made.path(outputs["index"]).read_bytes())


def test_the_release_of_the_base(small: Archive, locker: Made) -> None:
    suite = {"mirror": "debian", "suite": "sid", "components": ["main"]}
    upstream = {
        "on": [("base", None, Locked({"repositories": [suite], "packages": [], "system": DEBIAN.json()}))]
    }
    locked = Kernel().lock(KernelSpec(package=SPEC.package, on="base"), locker(upstream=upstream))
    assert locked.data["image"] == IMAGE


BAD = {
    "unknown": (KernelSpec(package="linux-image-clod-amd64", release="sid"), "package-unknown"),
    "version": (KernelSpec(package=SPEC.package, release="sid", version="9"), "package-unknown"),
    "no kernel": (KernelSpec(package="kmod", release="sid"), "kernel-package"),
    "from nowhere": (KernelSpec(package=SPEC.package), "packages-release"),
}


@pytest.mark.parametrize(("spec", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_specs(small: Archive, locker: Made, spec: KernelSpec, reason: str) -> None:
    with pytest.raises(InputError) as error:
        Kernel().lock(spec, locker())
    assert error.value.reason == reason
    assert error.value.hint


@pytest.mark.parametrize("lacks", ["boot/vmlinuz", "lib/modules"])
def test_a_package_that_is_none(archive: Archive, locker: Made, lacks: str) -> None:
    archive.add(IMAGE, files={path: content for path, content in FILES.items() if not path.startswith(lacks)})
    archive.publish("sid")
    with pytest.raises(KbuildError) as error:
        locker().build(Kernel(), KernelSpec(package=IMAGE, release="sid"))
    assert error.value.reason == "kernel-package"


HEADERS = f"linux-headers-{RELEASE}"
SOURCES = f"usr/src/{HEADERS}"
HEADER_FILES = {
    f"{SOURCES}/Module.symvers": SYMVERS,
    f"{SOURCES}/include/x.h": b"",
    f"lib/modules/{RELEASE}/build": f"../../../{SOURCES}",
}


def with_headers(archive: Archive, version: str = "6.12.9-1", compiler: str = "gcc-14") -> None:
    parts = f"linux-headers-6.12.9+deb13-common (= {version}), linux-kbuild-6.12.9+deb13, {compiler}"
    archive.add(IMAGE, "6.12.9-1", files=FILES)
    archive.add(HEADERS, version, files=HEADER_FILES, Depends=f"linux-base (>= 4), {parts}")
    archive.add("linux-headers-6.12.9+deb13-common", version, files={"usr/src/common/Makefile": b"all:"})
    archive.add("linux-kbuild-6.12.9+deb13", version, files={"usr/lib/linux-kbuild-6.12/fixdep": b""})
    archive.publish("sid")


def test_headers_and_symbols_are_outputs_beside_the_layer(archive: Archive, locker: Made) -> None:
    with_headers(archive)
    made = locker()
    spec = KernelSpec(
        package=IMAGE, release="sid", cmdline=("quiet",), early=("erofs",), blacklist=("nouveau",),
        options={"loop": "max_loop=8"}, load=("dummy",),
    )  # fmt: skip
    locked = Kernel().lock(spec, made)
    assert locked.data["compiler"] == "gcc-14"
    assert len(locked.materials) == len(locked.data["packages"]) + len(locked.data["headers"]) == 4
    outputs = made.build(Kernel(), spec)
    read = {name: made.path(blob).read_bytes() for name, blob in outputs.items()}
    assert read["release"] == f"{RELEASE}\n".encode()
    assert read["kconfig"] == b"CONFIG_EROFS_FS=m\n"
    assert sorted(read["symbols"].splitlines()) == sorted(SYMVERS.splitlines())
    abi = json.loads(read["abi"])
    assert (abi["flags"], abi["forced"], abi["only"], abi["folder"]) == (FLAGS, False, "", "usr/lib/modules/")
    assert json.loads(read["boot"]) == {"cmdline": ["quiet"], "early": ["erofs"]}
    assert b"Makefile" in read["headers"] and b"linux-kbuild-6.12/fixdep" in read["headers"]
    paths = set(Index.loads(read["index"]).paths())
    assert not any("usr/src" in path for path in paths), "no machine needs the headers"
    assert sum("d/kbuild-" in path for path in paths) == 2


def test_the_compiler_is_the_one_that_headers_name(archive: Archive, locker: Made) -> None:
    with_headers(archive, compiler="gcc-16-for-host")  # as sid has it
    locked = Kernel().lock(KernelSpec(package=IMAGE, release="sid"), locker())
    assert locked.data["compiler"] == "gcc-16-for-host"


def test_headers_of_another_version_are_not_its_own(archive: Archive, locker: Made) -> None:
    with_headers(archive, "6.12.9-2")
    locked = Kernel().lock(KernelSpec(package=IMAGE, release="sid"), locker())
    assert locked.data["headers"] == []


def test_no_headers_when_nobody_wants_them(archive: Archive, locker: Made) -> None:
    with_headers(archive)
    made = locker()
    outputs = made.build(Kernel(), KernelSpec(package=IMAGE, release="sid", headers=False))
    assert {"headers", "symbols"}.isdisjoint(outputs)


TREE = {path: content for path, content in {**FILES, **HEADER_FILES}.items() if "share" not in path}


def test_out_of_a_tar(debian_store: Store, tmp_path: Path) -> None:
    other = {path.replace(RELEASE, "5.0"): content for path, content in FILES.items()}
    tar = tmp_path / "kernel.tar"
    tar.write_bytes(make_tar(TREE))
    task = SmallTask(debian_store, KernelSpec(tarball="kernel.tar"), sources={"tarball": tar})
    outputs = Kernel().build(task)
    assert f"{MODULES}/vmlinuz" in Index.loads(task.path(outputs["index"]).read_bytes())
    assert json.loads(task.path(outputs["modules"]).read_bytes()) == {"erofs": []}
    assert {"headers", "symbols"} <= set(outputs)
    tar.write_bytes(make_tar({**TREE, **other}))
    task = SmallTask(debian_store, KernelSpec(tarball="kernel.tar"), sources={"tarball": tar})
    with pytest.raises(KbuildError) as error:
        Kernel().build(task)
    assert error.value.reason == "kernel-package" and "5.0" in error.value.message
    task = SmallTask(debian_store, KernelSpec(tarball="k", only=RELEASE), sources={"tarball": tar})
    assert Kernel().build(task)["symbols"] == outputs["symbols"]


def test_headers_in_a_tar_are_of_its_kernel_and_no_other(debian_store: Store, tmp_path: Path) -> None:
    other = {
        "usr/src/linux-headers-6.1/Module.symvers": b"0x1\tkfree\tvmlinux\tEXPORT_SYMBOL\t\n",
        "usr/src/linux-headers-6.1/include/config/kernel.release": b"6.1\n",
    }
    tar = tmp_path / "kernel.tar"
    tar.write_bytes(make_tar({**{p: c for p, c in TREE.items() if SOURCES not in p}, **other}))
    task = SmallTask(debian_store, KernelSpec(tarball="kernel.tar"), sources={"tarball": tar})
    with pytest.raises(KbuildError) as error:
        Kernel().build(task)
    assert error.value.reason == "kernel-headers"
    assert f"is {RELEASE}" in error.value.message and "of 6.1" in error.value.message
    own = {f"{SOURCES}/include/config/kernel.release": f"{RELEASE}\n".encode()}
    tar.write_bytes(make_tar({**TREE, **own, **other}))
    task = SmallTask(debian_store, KernelSpec(tarball="kernel.tar"), sources={"tarball": tar})
    outputs = Kernel().build(task)
    assert b"kernel.release" in (headers := task.path(outputs["headers"]).read_bytes())
    assert b"linux-headers-6.1/" not in headers, "what else is in /usr/src is left out"
    assert sorted(task.path(outputs["symbols"]).read_bytes().splitlines()) == sorted(SYMVERS.splitlines())


def test_out_of_an_image(debian_store: Store) -> None:
    files = {path: content for path, content in TREE.items() if not isinstance(content, str)}
    moved = {merged(path): content for path, content in files.items()}
    base = node(debian_store, "fedora", moved, node(debian_store, "below", {"etc/x": b""}))
    task = SmallTask(debian_store, KernelSpec(from_="fedora"), inputs={"from_": (base,)})
    outputs = Kernel().build(task)
    paths = set(Index.loads(task.path(outputs["index"]).read_bytes()).paths())
    assert f"{MODULES}/vmlinuz" in paths and "etc/x" not in paths
    assert task.path(outputs["release"]).read_bytes() == f"{RELEASE}\n".encode()


def test_a_kernel_comes_from_one_place() -> None:
    def complaints(**spec: Any) -> list[str]:
        values = {"package": "", "compile": None, **spec}
        refs = {"archive": ("tar",)} if spec.pop("archive", None) else {}
        declared = Declaration("k", "kernel", values, refs)
        return [message for _, message, _ in Kernel().check("k", declared, {})]

    assert not complaints(package="linux-image-amd64")
    assert not complaints(archive=True)
    assert "none" in complaints()[0]
    assert "package and archive" in complaints(package="linux-image-amd64", archive=True)[0]
