"""Every kind in the table is what `graph.node.Kind` asks for."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

from kairosbuild.graph.node import Kind
from kairosbuild.kinds.table import TABLE

PRODUCTS = {"boot", "layer", "file", "image", "disk", "initrd", "verdict", "tools", "iso", "uki", "netboot"}


@pytest.mark.parametrize("name", list(TABLE))
def test_kind_is_one(name: str) -> None:
    kind = TABLE[name]
    assert kind.name == name and kind is TABLE[name]
    assert type(kind.version) is int and kind.version >= 1
    assert dataclasses.is_dataclass(kind.Spec) and kind.produces in PRODUCTS
    assert not vars(kind), "a kind holds no state"
    for method in ("tools", "lock", "build"):
        ours, asked = (inspect.signature(getattr(of, method)).parameters for of in (type(kind), Kind))
        assert list(ours) == list(asked), f"{name}.{method}"


def test_what_is_not_used_is_not_imported() -> None:
    check = (
        "import sys; from kairosbuild.kinds.table import TABLE; TABLE['overlay'];"
        "assert 'disk' in TABLE and 'kairosbuild.kinds.disk' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
