"""Layers in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from oci_layers import written

from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item

Stack = list[tuple[Path, Index]]


@pytest.fixture
def stacked(tmp_path: Path) -> Callable[..., Stack]:
    """Write layers to files; return them as a stack."""

    def make(*layers: Iterable[Item]) -> Stack:
        stack = []
        for number, items in enumerate(layers):
            data, index = written(items)
            path = tmp_path / f"layer{number}.tar"
            path.write_bytes(data)
            stack.append((path, index))
        return stack

    return make
