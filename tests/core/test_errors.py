"""Hints: the nearest word, all words, or how many there are."""

import pytest

from kairosbuild.core.errors import MOST_LISTED, nearest

MANY = [f"module_{number}" for number in range(MOST_LISTED + 1)]


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("qcow3", ["raw", "qcow2"], "did you mean 'qcow2'?"),
        ("zzz", ["raw", "qcow2"], "known: qcow2, raw"),
        ("module_x", MANY, "did you mean 'module_9'?"),
        ("zzz", MANY[1:], "known: " + ", ".join(sorted(MANY[1:]))),
        ("zzz", MANY, f"none of the {MOST_LISTED + 1} that there are is called like that"),
        ("zzz", [], ""),
    ],
)
def test_nearest(word: str, known: list[str], hint: str) -> None:
    assert nearest(word, known) == hint
