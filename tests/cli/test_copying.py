"""Which output a node's name stands for in `--output NODE=FILE`."""

import itertools

import pytest

from kairosbuild.cli.copying import main_output


@pytest.mark.parametrize(
    ("outputs", "main"),
    [
        (("iso", "artifact"), "iso"),
        (("disk", "artifact", "uki"), "disk"),
        (("artifact", "uki", "entry", "of"), "uki"),
        (("initrd", "about"), "initrd"),
        (("artifact",), "artifact"),
        (("serial", "log"), "log"),
        ((), ""),
    ],
)
def test_it_does_not_depend_on_their_order(outputs: tuple[str, ...], main: str) -> None:
    assert {main_output(each) for each in itertools.permutations(outputs)} == {main}
