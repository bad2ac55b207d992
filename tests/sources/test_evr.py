import pytest

from kairosbuild.sources.evr import compare, compare_part, newest_last

ROWS = [
    ("1.0", "1.0", 0), ("1.0", "2.0", -1), ("2.0.1", "2.0", 1), ("5.5p1", "5.5p10", -1), ("10xyz", "10.1xyz", -1),
    ("xyz10", "xyz10.1", -1), ("xyz.4", "8", -1), ("xyz.4", "2", -1), ("5.5p2", "5.6p1", -1), ("6.0.rc1", "6.0", 1),
    ("10b2", "10a1", 1), ("7.4.052beta5", "7.4.52", 1), ("1.0a", "1.0aa", -1), ("10.0001", "10.1", 0),
    ("10.0001", "10.0039", -1), ("4.999.9", "5.0", -1), ("20101121", "20101122", -1), ("2_0", "2.0", 0),
    ("1.0~rc1", "1.0", -1), ("1.0~rc1", "1.0~rc2", -1), ("1.0~rc1~git1", "1.0~rc1", -1), ("1.0^", "1.0", 1),
    ("1.0^git1", "1.0^git2", -1), ("1.0^git1", "1.01", -1), ("1.0^20160101", "1.0.1", -1),
    ("1.0~rc1^git1", "1.0~rc1", 1), ("1.0^git1~pre", "1.0^git1", -1), ("a+", "a_", 0), ("+a", "_a", 0),
]  # fmt: skip
"""Rows of rpm's own test suite (rpmvercmp.at)."""


@pytest.mark.parametrize(("a", "b", "order"), ROWS)
def test_versions_are_ordered_as_rpm_does(a: str, b: str, order: int) -> None:
    assert compare_part(a, b) == order
    assert compare_part(b, a) == -order


def test_epochs_before_versions_before_releases() -> None:
    older, newer, version, epoch = ("", "1", "1"), ("0", "1", "2"), ("0", "1.1", "0"), ("1", "0", "1")
    assert sorted([epoch, version, newer, older], key=newest_last) == [older, newer, version, epoch]
    assert compare(("", "1", "1"), ("0", "1", "1")) == 0
