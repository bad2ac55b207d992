import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairosbuild.sources.version import compare, newest_last

ORDERED = [
    "0~~", "0~", "0", "0.1~rc1", "0.1", "0.1-1~bpo1", "0.1-1", "0.1-1+b1", "0.1-1+deb13u1", "0.1-1.1",
    "0.1-2", "0.2a", "0.2b", "0.2+dfsg", "0.10", "1.0", "1:0", "2:0~1",
]  # fmt: skip
VERSIONS = st.from_regex(r"([1-9]:)?[0-9][0-9a-z.+~]{0,8}(-[0-9a-z.+~]{1,4})?", fullmatch=True)


def test_the_order_of_versions() -> None:
    shuffled = ORDERED[1::2] + ORDERED[::2]
    assert sorted(shuffled, key=newest_last) == ORDERED


@pytest.mark.parametrize(("a", "b"), [("1.0", "1.00"), ("1", "0:1"), ("1-0", "1"), ("1.0-0", "1.0")])
def test_equal_versions(a: str, b: str) -> None:
    assert compare(a, b) == 0


@given(VERSIONS, VERSIONS)
def test_order_is_antisymmetric(a: str, b: str) -> None:
    assert compare(a, b) == -compare(b, a)
    assert compare(a, a) == 0


@pytest.mark.skipif(not shutil.which("dpkg"), reason="no dpkg here to ask")
def test_dpkg_agrees() -> None:
    pairs = [(a, b) for a in ORDERED[::3] for b in ORDERED[::4]]
    for a, b in pairs:
        older = subprocess.run(["dpkg", "--compare-versions", a, "lt", b], check=False).returncode == 0
        assert older == (compare(a, b) < 0), (a, b)
