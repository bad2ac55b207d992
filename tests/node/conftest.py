"""A registry with two images, and a machine that runs the first."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_registry import MachineRegistry, serving
from samples import Image

from kairosbuild.node.machine import Machine


@pytest.fixture
def registry() -> Iterator[MachineRegistry]:
    with serving(MachineRegistry()) as found:
        yield found


@pytest.fixture
def images(tmp_path: Path, registry: MachineRegistry) -> tuple[Image, Image]:
    """A and B: three layers, of which two are the same."""
    first, second = Image(tmp_path, 3, 2, 1), Image(tmp_path, 4, 2, 1)
    registry.publish("a", first.kernel, first.config, first.forms)
    registry.publish("b", second.kernel, second.config, second.forms)
    return first, second


@pytest.fixture
def here(tmp_path: Path, images: tuple[Image, Image]) -> Machine:
    from samples import healthy, installed

    installed(tmp_path / "m", images[0])
    return healthy(tmp_path / "m", images[0])
