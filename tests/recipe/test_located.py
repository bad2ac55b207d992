import pytest

from kairosbuild.core.errors import InputError, Origin
from kairosbuild.recipe.located import MOST_DEPTH, Fields, Items, Text, read

BAD = [
    # text, reason, line, column
    ("", "yaml-empty", 1, 1),
    ("# nothing\n", "yaml-empty", 1, 1),
    ("a: 1\na: 2\n", "duplicate-key", 2, 1),
    ("a: {b: 1, c: 2, b: 3}", "duplicate-key", 1, 17),
    ("a:\n\tb: 1\n", "yaml-syntax", 2, 1),
    ("a: [1, 2\nb: 3\n", "yaml-syntax", 2, 2),
    ("a: 'x", "yaml-syntax", 1, 6),
    ("a: 1\n---\nb: 2\n", "yaml-documents", 2, 1),
    ("? [x]\n: 1\n", "yaml-key", 1, 3),
    ("? {x: 1}\n: 1\n", "yaml-key", 1, 3),
    ("null: 1\n", "yaml-key", 1, 1),
    ("a: 1\n~: 2\n", "yaml-key", 2, 1),
    ("a: &x {b: 1}\nc: {<<: *x}\n", "yaml-key", 2, 5),
    ("&x a: 1\n*x : 2\n", "yaml-key", 2, 1),
    ("a: *nowhere\n", "yaml-alias", 1, 4),
    ("a: &x [*x]\n", "yaml-alias", 1, 8),
    ("a: !!python/object:os.system b\n", "yaml-tag", 1, 4),
    ("a: !!str 5\n", "yaml-tag", 1, 4),
    ("a: !t [1]\n", "yaml-tag", 1, 4),
    ('a: "x\\0y"\n', "yaml-character", 1, 4),
    ("a: 1\nb: x\x07\n", "yaml-character", 2, 5),
    ("a: \ufffe\n", "yaml-character", 1, 4),
    ('a: "\\ud800"\n', "yaml-syntax", 1, 7),
    ("[" * (MOST_DEPTH + 1), "yaml-limit", 1, MOST_DEPTH + 1),
    ("{a: " * 100_000, "yaml-limit", 1, 4 * MOST_DEPTH + 1),
]


@pytest.mark.parametrize(("text", "reason", "line", "column"), BAD, ids=lambda v: str(v)[:24])
def test_bad_yaml_says_where(problems, text, reason, line, column):
    assert problems(read, text.encode(), "f.yaml") == [(reason, line, column)]


def test_not_utf8_says_where(problems):
    assert problems(read, b"a: 1\nb: \xff", "f.yaml") == [("yaml-encoding", 2, 4)]


def test_utf16_is_refused(problems):
    assert problems(read, "a: 1".encode("utf-16"), "f.yaml")[0][0] == "yaml-encoding"


def test_problems_before_a_syntax_error_are_told_too(problems):
    found = problems(read, b"a: 1\na: 2\nb: !x 1\nc: [", "f.yaml")
    assert [reason for reason, _, _ in found] == ["duplicate-key", "yaml-tag", "yaml-syntax"]


def test_tab_gets_a_hint():
    with pytest.raises(InputError) as caught:
        read(b"a:\n\tb: 1\n", "f.yaml")
    assert "spaces" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["6.10", "no", "0755", "1e3", "2024-01-01", "0x10", "1_000", "on", "12:30:45"]
)
def test_scalars_stay_as_written(text):
    found = read(f"a: {text}\nb: '{text}'\n".encode(), "f.yaml")
    assert isinstance(found, Fields)
    plain, quoted = found.fields["a"], found.fields["b"]
    assert isinstance(plain, Text) and isinstance(quoted, Text)
    assert (plain.value, plain.plain, quoted.value, quoted.plain) == (text, True, text, False)


def test_places_of_values_and_keys():
    found = read("\ufeffa: 1\nlist:\n  - x\n  -   äö: 'z'\n".encode(), "f.yaml")
    assert isinstance(found, Fields)
    items = found.fields["list"]
    assert isinstance(items, Items)
    inner = items.items[1]
    assert isinstance(inner, Fields)
    assert found.keys["list"].origin == Origin("f.yaml", 2, 1)
    assert items.items[0].origin == Origin("f.yaml", 3, 5)
    assert inner.keys["äö"].origin == Origin("f.yaml", 4, 7)
    assert inner.fields["äö"].origin == Origin("f.yaml", 4, 11)


def test_boolean_words_are_keys_like_others():
    found = read(b"on: base\nyes: 1\n8080: x\n", "f.yaml")
    assert isinstance(found, Fields)
    assert list(found.fields) == ["on", "yes", "8080"]


def test_anchors_are_read():
    found = read(b"a: &x [1, 2]\nb: *x\n", "f.yaml")
    assert isinstance(found, Fields)
    assert found.fields["a"] is found.fields["b"]


def test_an_anchor_may_be_used_again_for_something_else():
    found = read(b"a: &x 1\nb: &x [2]\nc: *x\n", "f.yaml")
    assert isinstance(found, Fields)
    assert found.fields["c"] is found.fields["b"]


def test_billion_laughs(problems):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (problem,) = problems(read, "\n".join(lines).encode(), "f.yaml")
    assert problem[0] == "yaml-limit"
    assert problem[1] <= 7


def test_huge_file_is_refused(problems):
    assert problems(read, b"#" * (33 << 20), "f.yaml") == [("yaml-limit", 1, 1)]
