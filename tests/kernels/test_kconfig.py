"""Configurations: read, merged, written."""

import pytest

from kairosbuild.core.errors import InputError
from kairosbuild.kernels import kconfig


def test_the_last_word_counts() -> None:
    base = kconfig.read(b"# a comment\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n", "base")
    assert base == {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_C": "n"}
    merged = kconfig.merged([base, {"CONFIG_A": "n"}, kconfig.read(b'CONFIG_C="text"\n', "more")])
    assert kconfig.write(merged) == b'# CONFIG_A is not set\nCONFIG_B=m\nCONFIG_C="text"\n'


def test_a_line_that_is_none_is_named() -> None:
    with pytest.raises(InputError) as error:
        kconfig.read(b"CONFIG_A=y\nEROFS=m\n", "more.config")
    assert error.value.reason == "bad-kconfig"
    assert "more.config:2" in error.value.message
