"""Kind drivers: what is locked, what is compiled again and what is not, what is refused, which firmware is taken."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BootTask, node
from distros.rpms import Rpm, build
from local_archive import Archive, make_deb, make_tar
from module_samples import FLAGS, SYMVERS, driver
from small_locker import Made, SmallLocker

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import InputError
from kairosbuild.graph.node import Input, Locked, Material, Outputs
from kairosbuild.kernels.abi import Abi
from kairosbuild.kinds.drivers import BuildSpec, Drivers, DriversSpec, PrebuiltSpec
from kairosbuild.kinds.kernel import Kernel, KernelSpec
from kairosbuild.oci.index import Index
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.store import Store

RELEASE = "6.12.9"
IMAGE = f"linux-image-{RELEASE}"
HEADERS = f"linux-headers-{RELEASE}"
LOCKED = {"packages": [], "toolchain": [], "asked": {}}


class DriverTask(BootTask):
    """The compiler is played; what is derived is remembered over tasks, as a store does."""

    def __init__(self, *given: Any, memory: dict[bytes, Outputs], **more: Any) -> None:
        super().__init__(*given, **more)
        self.derived = memory


@pytest.fixture
def compile_(debian_store: Store, tmp_path: Path) -> Callable[..., tuple[Outputs, DriverTask]]:
    """Build a node of one module; each call may be for another kernel."""
    memory: dict[bytes, Outputs] = {}
    sources = tmp_path / "hello"
    sources.mkdir()
    (sources / "Makefile").write_text("obj-m := hello.o\n")

    def build(
        image: bytes | Mapping[str, bytes] = b"", *, symvers: bytes = SYMVERS, release: str = RELEASE,
        flags: str = FLAGS, without: str = "", toolchain: Input | None = None, **spec: Any,
    ) -> tuple[Outputs, DriverTask]:  # fmt: skip
        modules = image if isinstance(image, Mapping) else {"hello.ko": image or driver()}
        kernel = kernel_input(debian_store, symvers, release, flags)
        kernel = Input("kernel", "kernel", {n: b for n, b in kernel.outputs.items() if n != without})
        task = DriverTask(
            debian_store,
            DriversSpec(kernel="linux", build={"hello": BuildSpec(source="hello")}, **spec),
            lambda action: {"modules.tar": make_tar(modules)},
            memory=memory,
            inputs={"kernel": (kernel,), **({"toolchain": (toolchain,)} if toolchain else {})},
            sources={"build.hello.source": sources},
            locked=Locked({} if toolchain else LOCKED),
        )
        return Drivers().build(task), task

    return build


def kernel_input(store: Store, symvers: bytes, release: str, flags: str) -> Input:
    headers = node(store, "headers", {f"usr/src/{release}/Makefile": release.encode()}).outputs["layer"]
    only = "" if "modversions" in flags else headers.digest
    abi = {**Abi(flags, only=only).json(), "folder": "usr/lib/modules/"}
    texts = {"release": f"{release}\n".encode(), "symbols": symvers, "abi": dumps(abi)}
    return Input(
        "kernel",
        "kernel",
        {**{name: store.cas.put_bytes(text) for name, text in texts.items()}, "headers": headers},
    )


def paths(task: DriverTask, outputs: Outputs) -> set[str]:
    index = Index.loads(task.path(outputs["index"]).read_bytes())
    return {one.entry.path for one in index if one.entry.type != "dir"}


def compilations(task: DriverTask) -> int:
    return sum("/in/modules.sh" in action.command for action in task.actions)


def test_a_module_is_compiled_and_placed(compile_: Callable[..., Any]) -> None:
    outputs, task = compile_(load=("hello",), early=("hello",))
    assert f"usr/lib/modules/{RELEASE}/updates/hello.ko" in paths(task, outputs)
    assert any(path.startswith("usr/lib/modules-load.d/kbuild-") for path in paths(task, outputs))
    (action,) = (one for one in task.actions if "/in/modules.sh" in one.command)
    assert set(action.inputs) == {"modules.sh", "source/Makefile"}
    assert len(action.root) == 2, "the compiler's tree and the headers"
    about = json.loads(task.path(outputs["drivers"]).read_bytes())
    assert about == {"kernel": RELEASE, "modules": [{"name": "hello", "signed": False}]}
    assert json.loads(task.path(outputs["boot"]).read_bytes()) == {"cmdline": [], "early": ["hello"]}


def test_any_root_with_a_compiler_will_do(debian_store: Store, compile_: Callable[..., Any]) -> None:
    base = node(debian_store, "base", {"usr/bin/make": b"elf"})
    compiler = node(debian_store, "compiler", {"usr/bin/gcc": b"elf"}, base)
    outputs, task = compile_(toolchain=compiler)
    assert f"usr/lib/modules/{RELEASE}/updates/hello.ko" in paths(task, outputs)
    (action,) = task.actions
    kernel = task.inputs["kernel"][0].outputs
    assert action.root == (base.outputs["layer"], compiler.outputs["layer"], kernel["headers"])
    assert compilations(compile_(toolchain=compiler, release="6.12.10")[1]) == 0
    other = node(debian_store, "compiler", {"usr/bin/gcc": b"newer"}, base)
    assert compilations(compile_(toolchain=other)[1]) == 1


def test_equal_symbols_compile_nothing_again(compile_: Callable[..., Any]) -> None:
    assert compilations(compile_()[1]) == 1
    outputs, task = compile_(release="6.12.10")
    assert compilations(task) == 0
    assert "compiled before" in task.notes[0]
    assert "usr/lib/modules/6.12.10/updates/hello.ko" in paths(task, outputs)
    assert compilations(compile_(symvers=SYMVERS + b"0x00000003\tmore\tvmlinux\tEXPORT_SYMBOL\t\n")[1]) == 1


def test_without_symbol_versions_only_the_very_kernel_will_do(compile_: Callable[..., Any]) -> None:
    plain = FLAGS.removesuffix(" modversions")
    image = driver(flags=plain, versions={})
    assert compilations(compile_(image, flags=plain)[1]) == 1
    assert compilations(compile_(image, flags=plain)[1]) == 0
    other = driver("6.12.10", flags=plain, versions={})
    assert compilations(compile_(other, flags=plain, release="6.12.10")[1]) == 1


REFUSED = {
    "vermagic": (driver(flags="SMP mod_unload modversions"), "driver-vermagic"),
    "symbol": (driver(wants=["kfree", "video_register_device"]), "driver-symbol"),
    "version": (driver(versions={"kfree": 77}), "driver-version"),
    "no module": (b"junk", "not-a-module"),
}


@pytest.mark.parametrize(("image", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_module_that_does_not_fit_is_refused(
    compile_: Callable[..., Any], image: bytes, reason: str
) -> None:
    with pytest.raises(InputError) as error:
        compile_(image)
    assert error.value.reason == reason
    if reason != "not-a-module":
        assert "node: " in error.value.message and "'linux'" in error.value.message, "both are named"


def test_modules_of_one_name_are_refused(compile_: Callable[..., Any]) -> None:
    with pytest.raises(InputError) as error:
        compile_({"a/hello.ko": driver(), "b/hello.ko": driver()})
    assert error.value.reason == "drivers-twice"


@pytest.mark.parametrize(
    ("lacks", "reason"), [("symbols", "drivers-symbols"), ("headers", "drivers-headers")]
)
def test_a_kernel_without_what_it_takes(compile_: Callable[..., Any], lacks: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        compile_(without=lacks)
    assert error.value.reason == reason
    assert "'linux'" in error.value.message


# -- locking ---------------------------------------------------------------------------------------

WIFI = f"lib/modules/{RELEASE}/kernel/net/wifi.ko.xz"
CONTENTS = (
    "usr/lib/firmware/wifi-1.bin     non-free-firmware/kernel/firmware-wifi\n"
    "usr/lib/firmware/wifi-2.bin     non-free-firmware/kernel/firmware-wifi\n"
    "usr/lib/firmware/big.bin        non-free-firmware/kernel/firmware-big\n"
)


LYING = {
    "other-modules": driver("6.12.8", flags=FLAGS.replace("preempt", "rt")),
    "lacking-modules": driver(RELEASE, wants=["kfree", "video_register_device"]),
    "older-modules": driver(RELEASE, versions={"kfree": 77}),
}
"""Packages whose modules lie in this kernel's folder and would not load."""


@pytest.fixture
def debian(archive: Archive) -> Archive:
    """A kernel with a module that wants firmware, its headers, and things for DKMS."""
    wifi = driver(RELEASE, firmware=["wifi-2.bin", "wifi-3.bin"])
    files = {f"boot/vmlinuz-{RELEASE}": b"MZ", WIFI: lzma.compress(wifi), f"boot/config-{RELEASE}": b""}
    archive.add(IMAGE, "1", files=files)
    archive.add(
        f"linux-image-{RELEASE}.1",
        "1",
        files={k.replace(RELEASE, f"{RELEASE}.1"): v for k, v in files.items()},
    )
    symvers = {f"usr/src/{HEADERS}/Module.symvers": SYMVERS}
    archive.add(HEADERS, "1", files=symvers, Depends="linux-base, gcc-14")
    for name in ("gcc-14", "make", "bash", "mawk", "xz-utils", "diffutils", "base-files", "dkms", "dash",
                 "coreutils", "sed", "grep", "findutils", "tar", "libc-bin", "linux-base"):  # fmt: skip
        archive.add(name)
    archive.add("hello-dkms", files={"usr/src/hello-1/dkms.conf": b"PACKAGE_NAME=hello\n"})
    archive.add("hello-modules", files={f"lib/modules/{RELEASE}/extra/hello.ko": driver(RELEASE)})
    place = f"lib/modules/{RELEASE}/extra/hello.ko.xz"
    archive.add("next-modules", files={f"lib/modules/{RELEASE}.1/extra/hello.ko": LYING["lacking-modules"]})
    for name, image in LYING.items():
        archive.add(name, files={place: lzma.compress(image)})
    firmware = {"usr/lib/firmware/wifi-1.bin": b"1" * 900, "usr/lib/firmware/wifi-2.bin": b"22"}
    archive.add("firmware-wifi", files=firmware)
    archive.add("firmware-big", files={"usr/lib/firmware/big.bin": b"3" * 999})
    archive.publish("sid", component="main")
    packages = archive.files
    archive.publish("sid", component="non-free-firmware", contents=CONTENTS)
    both = archive.files["dists/sid/InRelease"]
    assert both and packages
    return archive


def locked(made: SmallLocker, image: str = IMAGE, **spec: Any) -> Locked:
    kernel = Kernel().lock(
        KernelSpec(package=image, release="sid", repositories=("non-free-firmware",)), made
    )
    kernel = Locked({**kernel.data, "family": "apt"}, kernel.materials)
    made._upstream = {**made._upstream, "kernel": [("kernel", None, kernel)]}
    return Drivers().lock(DriversSpec(kernel="linux", **spec), made)


def test_what_is_locked(debian: Archive, locker: Made) -> None:
    found = locked(locker(), firmware=("wifi",), dkms=("hello-dkms",), packages=("hello-modules",))
    uses = [(one["name"], one["use"]) for one in found.data["packages"]]
    assert uses == [("hello-dkms", "dkms"), ("hello-modules", "prebuilt"), ("firmware-wifi", "firmware")]
    assert found.data["asked"] == {"wifi": ["wifi-2.bin", "wifi-3.bin"]}
    tools = {one["name"] for one in found.data["toolchain"]}
    assert {"gcc-14", "make", "dkms"} <= tools and HEADERS not in tools
    assert len(found.materials) == len(found.data["packages"]) + len(found.data["toolchain"])


def test_nothing_to_compile_takes_no_compiler(debian: Archive, locker: Made) -> None:
    assert locked(locker(), firmware=("big.bin",)).data["toolchain"] == []


CANNOT = {
    "no headers": (f"linux-image-{RELEASE}.1", {"dkms": ("hello-dkms",)}, "drivers-headers"),
    "not for dkms": (IMAGE, {"dkms": ("hello-modules",)}, "drivers-dkms"),
    "another release": (f"linux-image-{RELEASE}.1", {"packages": ("hello-modules",)}, "drivers-release"),
    "another vermagic": (IMAGE, {"packages": ("other-modules",)}, "driver-vermagic"),
    "a missing symbol": (IMAGE, {"packages": ("lacking-modules",)}, "driver-symbol"),
    "another checksum": (IMAGE, {"packages": ("older-modules",)}, "driver-version"),
    "no modules": (IMAGE, {"packages": ("hello-dkms",)}, "drivers-release"),
    "no such package": (IMAGE, {"dkms": ("helo-dkms",)}, "package-unknown"),
    "no such module": (IMAGE, {"firmware": ("wify",)}, "firmware-module"),
    "no such firmware": (IMAGE, {"firmware": ("wifi-9.bin",)}, "firmware-missing"),
}


@pytest.mark.parametrize(("image", "spec", "reason"), CANNOT.values(), ids=CANNOT.keys())
def test_what_cannot_be_locked(
    debian: Archive, locker: Made, image: str, spec: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError) as error:
        locked(locker(), image, **spec)
    assert error.value.reason == reason
    assert error.value.hint
    if reason.startswith("driver") and reason != "drivers-dkms":
        assert "'linux'" in error.value.message and "node" in error.value.message, "both nodes are named"


def test_a_toolchain_wants_headers_too(debian: Archive, locker: Made) -> None:
    kernel = Locked({"family": "dnf", "packages": [{"name": "kernel-core"}], "image": "kernel-core"})
    made = locker(upstream={"kernel": [("kernel", None, kernel)]})
    for more, reason, word in (
        ({"toolchain": "cc"}, "drivers-headers", "kernel-devel"),
        ({}, "drivers-family", "toolchain"),
    ):
        with pytest.raises(InputError) as error:
            Drivers().lock(DriversSpec(kernel="linux", build={"x": BuildSpec(source="x")}, **more), made)
        assert error.value.reason == reason and word in error.value.hint
    assert (
        not Drivers()
        .lock(
            DriversSpec(kernel="linux", build={"x": BuildSpec(source="x")}, toolchain="cc"),
            locker(upstream={"kernel": [("kernel", None, Locked())]}),
        )
        .data
    )


def test_headers_that_were_declined_are_not_said_to_be_missing(debian: Archive, locker: Made) -> None:
    made = locker()
    kernel = Kernel().lock(
        KernelSpec(package=IMAGE, release="sid", headers=False, repositories=("non-free-firmware",)), made
    )
    made._upstream = {
        "kernel": [("kernel", None, Locked({**kernel.data, "family": "apt"}, kernel.materials))]
    }
    with pytest.raises(InputError) as error:
        Drivers().lock(DriversSpec(kernel="linux", build={"hello": BuildSpec(source="hello")}), made)
    assert error.value.reason == "drivers-headers"
    assert (
        "'linux' is told to have no headers" in error.value.message and "headers: false" in error.value.hint
    )


def test_a_symbol_may_come_from_what_is_still_to_be_compiled(debian: Archive, locker: Made) -> None:
    both = {"packages": ("lacking-modules",), "dkms": ("hello-dkms",)}
    assert [one["use"] for one in locked(locker(), **both).data["packages"]] == ["dkms", "prebuilt"]


def test_a_kernel_without_headers_is_held_to_its_release_alone(debian: Archive, locker: Made) -> None:
    found = locked(locker(), f"{IMAGE}.1", packages=("next-modules",))
    assert [one["name"] for one in found.data["packages"]] == ["next-modules"]


def test_only_the_firmware_that_is_asked_for(debian: Archive, locker: Made) -> None:
    made = locker()
    spec = {"firmware": ("wifi",)}
    found = locked(made, **spec)
    made.get(found.materials)
    kernel = kernel_input(made.store, SYMVERS, RELEASE, FLAGS)
    task = DriverTask(
        made.store, DriversSpec(kernel="linux", **spec), lambda action: {}, memory={},
        inputs={"kernel": (kernel,)}, locked=found,
    )  # fmt: skip
    assert paths(task, Drivers().build(task)) == {"usr/lib/firmware/wifi-2.bin"}
    assert task.notes == ["firmware: 1 of the 2 files of its packages, 0.0 MB of 0.0 MB: 0.0 MB saved"]


def test_prebuilt_modules(debian: Archive, locker: Made) -> None:
    made = locker()
    found = locked(made, packages=("hello-modules",))
    made.get(found.materials)
    for release in (RELEASE, "6.12.10"):
        kernel = kernel_input(made.store, SYMVERS, release, FLAGS)
        spec = DriversSpec(kernel="linux", packages=("hello-modules",))
        task = DriverTask(
            made.store, spec, lambda action: {}, memory={}, inputs={"kernel": (kernel,)}, locked=found
        )
        if release == RELEASE:
            assert f"usr/lib/modules/{RELEASE}/updates/hello.ko" in paths(task, Drivers().build(task))
            continue
        with pytest.raises(InputError) as error:
            Drivers().build(task)
        assert error.value.reason == "drivers-release"


# -- modules that somebody else compiled, in no repository -----------------------------------------

PLACE = f"lib/modules/{RELEASE}/extra/hello.ko.xz"


def packed(form: str, image: bytes, folder: Path) -> Path:
    """A vendor's file of this form with one module."""
    folder.mkdir(exist_ok=True)
    file = folder / f"vendor.{form}"
    if form == "deb":
        file.write_bytes(make_deb("Package: vendor\n", make_tar({PLACE: lzma.compress(image)})))
    elif form == "tar":
        file.write_bytes(lzma.compress(make_tar({f"driver/{PLACE}": lzma.compress(image)})))
    elif form == "rpm":
        build([Rpm("vendor").add(PLACE, lzma.compress(image), folder / "stage")], folder / "made", {}, {})
        (file,) = (folder / "made").glob("*.rpm")
    else:
        file.write_bytes(image)
    return file


@pytest.fixture
def prebuilt(debian_store: Store, tmp_path: Path) -> Callable[..., tuple[Outputs, DriverTask]]:
    """Build a node that takes one such file, out of the workspace or of another node."""

    def built(form: str, image: bytes) -> tuple[Outputs, DriverTask]:
        file = packed(form, image, tmp_path)
        archived = form != "ko"
        one = PrebuiltSpec(**({"archive": "vendor"} if archived else {"source": "vendor/vendor.ko"}))
        task = DriverTask(
            debian_store, DriversSpec(kernel="linux", prebuilt={"vendor": one}), lambda action: {}, memory={},
            inputs={"kernel": (kernel_input(debian_store, SYMVERS, RELEASE, FLAGS),)}, locked=Locked({}),
            sources={} if archived else {"prebuilt.vendor.source": file},
        )  # fmt: skip
        if archived:
            blob = debian_store.cas.add_copy(file)
            task.inputs = {
                **task.inputs,
                "prebuilt.vendor.archive": (Input("vendor", "fetch", {"file": blob}),),
            }
        return Drivers().build(task), task

    return built


@pytest.mark.parametrize("form", ["deb", "rpm", "tar", "ko"])
def test_a_vendors_module_is_taken_whatever_it_came_in(prebuilt: Callable[..., Any], form: str) -> None:
    outputs, task = prebuilt(form, driver())
    name = "vendor" if form == "ko" else "hello"
    assert paths(task, outputs) == {f"usr/lib/modules/{RELEASE}/updates/{name}.ko"}


@pytest.mark.parametrize("form", ["deb", "ko"])
@pytest.mark.parametrize(("image", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_vendors_module_that_does_not_fit_is_refused(
    prebuilt: Callable[..., Any], form: str, image: bytes, reason: str
) -> None:
    with pytest.raises(InputError) as error:
        prebuilt(form, image)
    assert error.value.reason == reason
    if reason != "not-a-module":
        assert "node: " in error.value.message and "'linux'" in error.value.message, "both are named"


def test_a_kernel_out_of_an_rpm_takes_a_vendors_rpm(debian_store: Store, tmp_path: Path) -> None:
    folder = f"lib/modules/{RELEASE}"
    core = Rpm("kernel-core").add(f"{folder}/vmlinuz", b"MZ", tmp_path / "core")
    core.add(f"{folder}/symvers.xz", lzma.compress(SYMVERS), tmp_path / "core")
    core.add(f"{folder}/kernel/x.ko.xz", lzma.compress(driver()), tmp_path / "core")
    build([core], tmp_path / "rpms", {}, {})
    (file,) = (tmp_path / "rpms").glob("*.rpm")
    blob = debian_store.cas.add_copy(file)
    locked = Locked({"family": "dnf"}, (Material("fedora:core.rpm", blob.digest, blob.size),))
    kernel = Kernel().build(
        BootTask(debian_store, KernelSpec(package="kernel"), lambda action: {}, locked=locked)
    )
    assert "headers" not in kernel, "there are none in it; its symbols are"
    for image, reason in ((driver(), ""), (driver(wants=["kfree", "gone"]), "driver-symbol")):
        vendor = debian_store.cas.add_copy(packed("rpm", image, tmp_path / (reason or "good")))
        task = DriverTask(
            debian_store, DriversSpec(kernel="linux", prebuilt={"v": PrebuiltSpec(archive="vendor")}),
            lambda action: {}, memory={}, locked=Locked({}),
            inputs={"kernel": (Input("linux", "kernel", kernel),),
                    "prebuilt.v.archive": (Input("vendor", "fetch", {"file": vendor}),)},
        )  # fmt: skip
        if not reason:
            assert f"usr/lib/modules/{RELEASE}/updates/hello.ko" in paths(task, Drivers().build(task))
            continue
        with pytest.raises(InputError) as error:
            Drivers().build(task)
        assert error.value.reason == reason


@pytest.mark.parametrize(("name", "reason"), [
    ("other-modules", "driver-vermagic"), ("lacking-modules", "driver-symbol"), ("older-modules", "driver-version"),
    ("next-modules", "drivers-release"),
])  # fmt: skip
def test_a_vendors_file_that_is_known_is_refused_before_anything_is_built(
    debian: Archive, locker: Made, name: str, reason: str
) -> None:
    made = locker()
    path = next(path for path in debian.files if path.endswith(".deb") and f"/{name}_" in path)
    file = debian.files[path]
    pinned = Material(f"debian:{path}", of_bytes(file).digest, len(file))
    made._upstream = {"prebuilt.vendor.archive": [("fetch", None, Locked(materials=(pinned,)))]}
    with pytest.raises(InputError) as error:
        locked(made, prebuilt={"vendor": PrebuiltSpec(archive="vendor")})
    assert error.value.reason == reason
    assert "node: prebuilt.vendor" in error.value.message and "'linux'" in error.value.message


def test_plans_that_are_refused() -> None:
    def complaints(kind: str = "kernel", **spec: Any) -> list[str]:
        lists = ("firmware", "dkms", "packages", "load", "early", "blacklist", "firmware_packages")
        empty: dict[str, Any] = {name: [] for name in lists}
        values = {**empty, "build": {}, "prebuilt": {}, "options": {}, **spec}
        others = {"k": Declaration("k", kind, {})}
        declared = Declaration("d", "drivers", values, {"kernel": ("k",)})
        return [message for _, message, _ in Drivers().check("d", declared, others)]

    assert not complaints(dkms=["hello-dkms"])
    assert "kind base" in complaints("base", dkms=["hello-dkms"])[0]
    assert "nothing" in complaints()[0]
    assert "exactly one" in complaints(build={"hello": {}})[0]
    assert "exactly one" in complaints(prebuilt={"vendor": {}})[0]
