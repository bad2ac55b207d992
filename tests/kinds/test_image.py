"""Kind image: the stack that is checked, the layer that settles it, the document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_samples import module
from boot_task import BASE, KERNEL, MODULES, VERSION, BootTask, node

from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input
from kairosbuild.kinds.image import Image, ImageConfig, ImageSpec
from kairosbuild.oci.index import Index
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def play(action: Action) -> Mapping[str, bytes]:
    return {path: b"settled" if path.endswith("modules.dep") else b"" for path in action.outputs}


def build(store: Store, *layers: Input, **spec: Any) -> tuple[dict[str, Any], BootTask]:
    names = tuple(one.name for one in layers)
    task = BootTask(store, ImageSpec(layers=names, **spec), play, inputs={"layers": layers})
    return loads(task.path(Image().build(task)["image"]).read_bytes()), task


def paths(task: BootTask, document: Mapping[str, Any], number: int) -> list[str]:
    digest = document["layers"][number]["index"]["digest"]
    return list(Index.loads(task.store.cas.path(digest).read_bytes()).paths())


def test_the_document_names_layers_and_configuration(store: Store) -> None:
    base = node(store, "base", BASE)
    site = node(store, "site", {"etc": None, "etc/x": b"1"})
    config = ImageConfig(env={"B": "2", "A": "1"}, cmd=("sh",), labels={"l": "v"}, user="1:1", workdir="/w")
    document, task = build(store, base, site, config=config, compression="zstd")
    assert [one["name"] for one in document["layers"]] == ["base", "site"]
    assert document["layers"][0]["layer"] == base.outputs["layer"].json()
    assert document["config"] == {
        "Env": ["A=1", "B=2"],
        "Cmd": ["sh"],
        "Labels": {"l": "v"},
        "User": "1:1",
        "WorkingDir": "/w",
    }
    assert (document["schema"], document["platform"], document["compression"]) == (1, "linux/amd64", "zstd")
    assert document["epoch"] == task.epoch
    assert task.actions == [], "nothing here needs settling"


def test_a_layer_without_what_it_was_built_on_is_refused(store: Store) -> None:
    base = node(store, "base", BASE)
    system = node(store, "system", {"usr/bin/x": b"1"}, base)
    build(store, base, system)
    for wrong in ((system,), (system, base)):
        with pytest.raises(KbuildError) as caught:
            build(store, *wrong)
        assert caught.value.reason == "image-stack"


def test_a_folder_over_a_link_is_refused(store: Store) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, node(store, "base", BASE), node(store, "bad", {"lib/x": b"1"}))
    assert caught.value.reason == "image-hides-link"
    assert "/lib" in caught.value.message


def test_one_settled_kernel_needs_nothing(store: Store) -> None:
    document, task = build(store, node(store, "base", BASE), node(store, "kernel", KERNEL))
    assert len(document["layers"]) == 2
    assert task.actions == []


def test_drivers_of_their_own_are_settled_with_the_kernel_alone(store: Store) -> None:
    base, kernel = node(store, "base", BASE), node(store, "kernel", KERNEL)
    drivers = node(store, "drivers", {f"{MODULES}/updates/x.ko": b"x"})
    document, task = build(store, base, kernel, drivers)
    assert [one["name"] for one in document["layers"]] == ["base", "kernel", "drivers", "settle"]
    (action,) = task.actions
    assert list(action.inputs.values()) == [kernel.outputs["layer"], drivers.outputs["layer"]]
    assert VERSION in action.command
    assert f"{MODULES}/modules.dep" in paths(task, document, 3)
    task.inputs = {"layers": (base, kernel, drivers, node(store, "site", {"etc": None}))}
    Image().build(task)
    assert len(task.actions) == 1, "what depmod reads is the same, so its result is"


def test_libraries_above_the_linkers_cache_are_settled(store: Store) -> None:
    base = node(store, "base", {**BASE, "etc/ld.so.cache": b"old"})
    more = node(store, "more", {"usr/lib/libmore.so.1": b"elf"})
    document, task = build(store, base, more)
    assert [one["name"] for one in document["layers"]] == ["base", "more", "settle"]
    assert paths(task, document, 2) == ["etc", "etc/ld.so.cache"]
    assert task.actions[0].root == (base.outputs["layer"], more.outputs["layer"])


def test_systemd_is_told_that_the_update_is_done(store: Store) -> None:
    system = {"usr/lib/systemd/systemd": b"elf", "var/lib/dpkg/status": b""}
    document, task = build(store, node(store, "base", BASE), node(store, "system", system))
    assert paths(task, document, 2) == ["etc", "etc/.updated", "var", "var/.updated"]
    pending = node(store, "site", {"usr/lib/sysusers.d/own.conf": b"u own"})
    document, _ = build(store, node(store, "base", BASE), node(store, "system", system), pending)
    assert [one["name"] for one in document["layers"]] == ["base", "system", "site"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (("base", "system"), []),
        (("system", "base"), ["layers"]),
        (("base", "base"), ["layers"]),
        (("system",), ["layers"]),
        (("unknown",), []),
    ],
)
def test_the_check_of_a_recipe(layers: tuple[str, ...], expected: list[str]) -> None:
    known = {
        "base": Declaration("base", "base", {}),
        "system": Declaration("system", "packages", {}, {"on": ("base",)}),
    }
    own = Declaration("os", "image", {}, {"layers": layers})
    assert [field for field, _, _ in Image().check("os", own, known)] == expected


# -- kernels and drivers ---------------------------------------------------------------------------


def complaints(*layers: str, several: bool = False, cmdline: tuple[str, ...] = ()) -> list[str]:
    driver = {"build": {"hello": {}}, "dkms": [], "packages": [], "prebuilt": {}}
    known = {
        "base": Declaration("base", "base", {}),
        "linux": Declaration("linux", "kernel", {"cmdline": list(cmdline)}),
        "other": Declaration("other", "kernel", {"cmdline": []}),
        "wifi": Declaration("wifi", "drivers", driver, {"kernel": ("linux",)}),
        "signed": Declaration("signed", "sign-modules", {}, {"of": ("wifi",)}),
        "firmware": Declaration("firmware", "drivers", {**driver, "build": {}}, {"kernel": ("linux",)}),
    }
    image = Declaration("os", "image", {"several_kernels": several}, {"layers": layers})
    return [message for _, message, _ in Image().check("os", image, known)]


def test_one_kernel_and_drivers_for_it() -> None:
    assert not complaints("base", "linux", "wifi")
    assert not complaints("base", "linux", "other", several=True)
    (two,) = complaints("base", "linux", "other")
    assert "'linux' and 'other'" in two
    (astray,) = complaints("base", "other", "wifi")
    assert "'wifi'" in astray and "'linux'" in astray


@pytest.mark.parametrize("argument", ["module.sig_enforce=1", "lockdown=integrity"])
def test_a_kernel_that_asks_for_signatures_gets_them(argument: str) -> None:
    (unsigned,) = complaints("base", "linux", "wifi", cmdline=("quiet", argument))
    assert "'wifi'" in unsigned and "'linux'" in unsigned and argument in unsigned
    assert not complaints("base", "linux", "signed", "firmware", cmdline=(argument,))


def kernel_node(
    store: Store, *, forced: bool = False, about: dict[str, str] | None = None, **boot: list[str]
) -> Input:
    one = node(store, "kernel", KERNEL, kind="kernel")
    said = {"cmdline": [], "early": [], **boot}
    more = {"abi": {"forced": forced}, "boot": said, "kernel": {"version": VERSION, **(about or {})}}
    return Input(
        "kernel", "kernel", {**one.outputs, **{n: store.cas.put_bytes(dumps(d)) for n, d in more.items()}}
    )


def driver_node(store: Store, *, signed: bool) -> Input:
    one = node(store, "wifi", {f"{MODULES}/updates/hello.ko": module()}, kind="drivers")
    about = {"kernel": VERSION, "modules": [{"name": "hello", "signed": signed}]}
    boot = {"cmdline": [], "early": ["hello"]}
    more = {"drivers": store.cas.put_bytes(dumps(about)), "boot": store.cas.put_bytes(dumps(boot))}
    return Input("wifi", "drivers", {**one.outputs, **more})


def test_what_kernel_and_drivers_say_of_the_start_is_the_images(store: Store) -> None:
    base = node(store, "base", BASE)
    kernel = kernel_node(store, cmdline=["quiet"], early=["erofs"])
    document, _ = build(store, base, kernel, driver_node(store, signed=False))
    assert document["boot"] == {"cmdline": ["quiet"], "early": ["erofs", "hello"]}
    assert "boot" not in build(store, base, kernel_node(store))[0]


def test_a_kernel_built_to_ask_for_signatures(store: Store) -> None:
    base, kernel = node(store, "base", BASE), kernel_node(store, forced=True)
    build(store, base, kernel, driver_node(store, signed=True))
    with pytest.raises(KbuildError) as caught:
        build(store, base, kernel, driver_node(store, signed=False))
    assert caught.value.reason == "image-unsigned"
    assert "'wifi'" in caught.value.message and "'kernel'" in caught.value.message


def test_two_kernels_that_only_the_layers_tell(store: Store) -> None:
    old = {path.replace(VERSION, "5.0"): content for path, content in KERNEL.items()}
    layers = node(store, "base", {**BASE, **old}), node(store, "kernel", KERNEL)
    with pytest.raises(KbuildError) as caught:
        build(store, *layers)
    assert caught.value.reason == "image-kernels"
    build(store, *layers, several_kernels=True)


def test_modules_that_secure_boot_would_refuse_are_written_down(store: Store) -> None:
    base, kernel = node(store, "base", BASE), kernel_node(store, about={"lockdown": "secure-boot"})
    document, _ = build(store, base, kernel, driver_node(store, signed=False))
    assert document["unsigned"] == {"kernel": "kernel", "modules": {"wifi": ["hello"]}}
    assert "unsigned" not in build(store, base, kernel, driver_node(store, signed=True))[0]
    assert "unsigned" not in build(store, base, kernel_node(store), driver_node(store, signed=False))[0]


@pytest.mark.parametrize(
    ("layers", "forced", "expected"),
    [
        (("linux", "wifi"), True, ["image-unsigned"]),
        (("linux", "wifi"), False, []),
        (("linux", "signed"), True, []),
        (("linux", "vendor"), True, []),  # may be signed: known when it is built
    ],
)
def test_a_kernel_that_is_there_tells_before_anything_runs(
    layers: tuple[str, ...], forced: bool, expected: list[str]
) -> None:
    driver = {"build": {"hello": {}}, "dkms": [], "packages": [], "prebuilt": {}}
    known = {
        "linux": Declaration("linux", "kernel", {"cmdline": []}),
        "wifi": Declaration("wifi", "drivers", driver, {"kernel": ("linux",)}),
        "signed": Declaration("signed", "sign-modules", {}, {"of": ("wifi",)}),
        "vendor": Declaration("vendor", "drivers", {**driver, "build": {}, "prebuilt": {"x": {}}}, {"kernel": ("linux",)}),
    }  # fmt: skip
    image = Declaration("os", "image", {"several_kernels": False}, {"layers": layers})
    outputs = {("linux", "abi"): {"forced": forced}}
    told = list(Image().foresee(image, known, lambda name, output: outputs.get((name, output))))
    assert [one.reason for one in told] == expected
    assert not list(Image().foresee(image, known, lambda name, output: None))
