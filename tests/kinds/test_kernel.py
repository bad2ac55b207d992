import json

import pytest
from local_archive import Archive
from small_locker import Made

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.families.family import System
from kairosbuild.graph.node import Locked
from kairosbuild.kinds.kernel import Kernel, KernelSpec
from kairosbuild.oci.index import Index

RELEASE = "6.12.9+deb13-cloud-amd64"
IMAGE = f"linux-image-{RELEASE}"
DEBIAN = System("apt", "debian")
MODULES = f"usr/lib/modules/{RELEASE}"
FILES = {
    f"boot/vmlinuz-{RELEASE}": b"MZ kernel",
    f"boot/config-{RELEASE}": b"CONFIG_EROFS_FS=m\n",
    f"boot/System.map-{RELEASE}": b"map",
    f"lib/modules/{RELEASE}/kernel/fs/erofs/erofs.ko.xz": b"module",
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
