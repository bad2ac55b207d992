"""Whether a module fits a kernel, from a table of those that do and those that do not."""

import lzma

import pytest
from module_samples import FLAGS, SYMVERS, driver

from kairosbuild.core.errors import InputError
from kairosbuild.kernels import abi
from kairosbuild.kernels.module import read

PLAIN = FLAGS.removesuffix(" modversions")


def kernel(flags: str = FLAGS) -> abi.Kernel:
    return abi.Kernel("linux", "6.12.9", abi.Abi(flags), abi.symbols(SYMVERS))


def problems(image: bytes, of: abi.Kernel | None = None) -> list[InputError]:
    return abi.problems("wifi", [read("hello.ko", image)], of or kernel())


def test_what_a_module_says() -> None:
    image = driver(
        wants=["kfree", "printk"], exports=["mine"], weak=["perhaps"], firmware=["a/b.bin", "a/b.bin"]
    )
    for path, data in (("x/he-llo.ko", image), ("x/he-llo.ko.xz", lzma.compress(image))):
        found = read(path, data)
        assert (found.name, found.release, found.flags) == ("he_llo", "6.12.9", FLAGS)
        assert found.wants == {"kfree", "printk"}, "a weak symbol need not be there"
        assert found.exports == {"mine"}
        assert found.versions == {"kfree": 1}
        assert found.firmware == ("a/b.bin",)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"junk" * 99, driver()[:200]])
def test_what_is_no_module(data: bytes) -> None:
    with pytest.raises(InputError) as error:
        read("x.ko", data)
    assert error.value.reason == "not-a-module"


GOOD = {
    "same": (driver(), kernel()),
    "another release, equal symbols": (driver("6.12.8"), kernel()),
    "its own symbols": (driver(wants=["mine"], exports=["mine"], versions={}), kernel()),
    "no versions, same release": (driver(flags=PLAIN, versions={}), kernel(PLAIN)),
}
BAD = {
    "another flag": (driver(flags=f"{FLAGS} RANDSTRUCT"), kernel(), "driver-vermagic"),
    "another release without versions": (driver("6.12.8", PLAIN), kernel(PLAIN), "driver-vermagic"),
    "another release, none in the module": (driver("6.12.8", versions={}), kernel(), "driver-vermagic"),
    "no such symbol": (driver(wants=["video_register"]), kernel(), "driver-symbol"),
    "another symbol": (driver(versions={"kfree": 3}), kernel(), "driver-version"),
}


@pytest.mark.parametrize(("image", "of"), GOOD.values(), ids=GOOD.keys())
def test_modules_that_fit(image: bytes, of: abi.Kernel) -> None:
    assert not problems(image, of)


@pytest.mark.parametrize(("image", "of", "reason"), BAD.values(), ids=BAD.keys())
def test_modules_that_do_not(image: bytes, of: abi.Kernel, reason: str) -> None:
    (problem,) = problems(image, of)
    assert problem.reason == reason
    assert "wifi" in str(problem) and "'linux'" in str(problem), "both nodes are named"


def test_symvers_in_any_order_are_the_same() -> None:
    turned = b"\n".join(reversed(SYMVERS.splitlines()))
    assert abi.canonical(SYMVERS) == abi.canonical(turned)
    with pytest.raises(InputError) as error:
        abi.canonical(b"kfree\n")
    assert error.value.reason == "bad-symvers"
