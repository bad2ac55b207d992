from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairosbuild.core.errors import InputError
from kairosbuild.recipe.lockfile import (
    EMPTY,
    LockEntry,
    LockFile,
    Pin,
    dumps,
    loads,
    of_slot,
    path_for,
    read,
    slot,
    write,
)  # fmt: skip

DIGEST = "sha256:" + "ab" * 32
GOLDEN = """\
{
  "nodes": {
    "base": {
      "checksum": "DIGEST",
      "data": {
        "image": "x",
        "list": [
          1,
          {"a": 1, "b": 2}
        ],
        "none": {}
      },
      "materials": [
        {"digest": "DIGEST", "size": 5, "uri": "debian:pool/b.deb"},
        {"digest": "DIGEST", "size": 0, "uri": "https://example.com/ä"}
      ]
    }
  },
  "toolchain": {
    "image": {
      "checksum": "DIGEST",
      "data": {},
      "materials": []
    }
  },
  "version": 1
}
""".replace("DIGEST", DIGEST)
LOCK = LockFile(
    nodes={
        "base": LockEntry(
            DIGEST,
            {"none": {}, "image": "x", "list": [1, {"b": 2, "a": 1}]},
            (Pin("debian:pool/b.deb", DIGEST, 5), Pin("https://example.com/ä", DIGEST, 0)),
        )
    },
    toolchain={"image": LockEntry(DIGEST)},
)


def test_golden():
    assert dumps(LOCK).decode() == GOLDEN
    assert loads(GOLDEN.encode(), "x.lock") == LOCK


def test_a_file_and_back(tmp_path: Path):
    file = path_for(tmp_path / "os.yaml")
    assert file == tmp_path / "os.lock"
    assert read(file) == EMPTY
    write(file, LOCK)
    assert read(file) == LOCK
    assert [each.name for each in tmp_path.iterdir()] == ["os.lock"]


def test_the_same_lock_does_not_touch_its_file(tmp_path: Path):
    file = tmp_path / "os.lock"
    write(file, LOCK)
    before = file.stat()
    write(file, LOCK)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write(file, EMPTY)
    assert read(file) == EMPTY


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
entries = st.builds(
    LockEntry,
    digests,
    st.dictionaries(st.text('ab"\\\n'), json, max_size=3),
    st.lists(
        st.builds(
            Pin,
            st.from_regex(r"[a-z]{1,5}:[!-~]{1,9}", fullmatch=True).filter(lambda u: ".." not in u),
            digests,
            st.integers(0, 1 << 50),
        ),
        max_size=3,
    ).map(tuple),
)


@given(
    st.dictionaries(st.text("abc"), entries, max_size=3), st.dictionaries(st.text("abc"), entries, max_size=2)
)
@settings(max_examples=40)
def test_any_lock_comes_back(nodes, toolchain):
    lock = LockFile(nodes, toolchain)
    assert loads(dumps(lock), "x.lock") == lock
    turned = LockFile(dict(reversed(nodes.items())), dict(reversed(toolchain.items())))
    assert dumps(turned) == dumps(lock)


DAMAGED = [
    ("", "lock-damaged"),
    ("[]", "lock-damaged"),
    (GOLDEN[:200], "lock-damaged"),
    (GOLDEN.replace('"version": 1', '"version": 2'), "lock-version"),
    (GOLDEN.replace('"version": 1', '"version": 1.0'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"size": 5.5'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"size": -5'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"size": true'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"size": "5"'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"sise": 5'), "lock-damaged"),
    (GOLDEN.replace('"size": 5', '"size": 5, "size": 5'), "lock-damaged"),
    (GOLDEN.replace("debian:pool/b.deb", "pool/b.deb"), "lock-damaged"),
    (GOLDEN.replace("debian:pool/b.deb", "debian:../../b.deb"), "lock-damaged"),
    (GOLDEN.replace("debian:pool/b.deb", "debian:a b"), "lock-damaged"),
    (GOLDEN.replace("debian:pool/b.deb", "debian:\\ud800"), "lock-damaged"),
    (GOLDEN.replace(DIGEST, "sha256:00", 1), "lock-damaged"),
    (GOLDEN.replace("ab", "AB"), "lock-damaged"),
    (GOLDEN.replace('"materials": []', '"materials": {}'), "lock-damaged"),
    (GOLDEN.replace('"data": {},', '"data": [],'), "lock-damaged"),
    ("<<<<<<< HEAD\n" + GOLDEN, "lock-damaged"),
    ("[" * 100_000, "lock-damaged"),
    ("1" * 10_000, "lock-damaged"),
]


@pytest.mark.parametrize(("text", "reason"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_lock_says_what_mends_it(tmp_path: Path, text, reason):
    file = tmp_path / "os.lock"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read(file, recipe="recipes/os.yaml")
    assert (caught.value.reason, caught.value.origin.file) == (reason, str(file))
    assert "kbuild lock recipes/os.yaml" in caught.value.hint


def test_bytes_that_are_no_text(tmp_path: Path):
    file = tmp_path / "os.lock"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as caught:
        read(file)
    assert caught.value.reason == "lock-damaged"


def test_a_damaged_line_is_named():
    with pytest.raises(InputError) as caught:
        loads(GOLDEN.replace('"size": 5,', '"size": 5').encode(), "os.lock")
    assert caught.value.origin.line == 14


@given(st.binary(max_size=100), st.integers(0, len(GOLDEN)), st.integers(0, 20))
def test_any_damage_is_an_input_error_or_a_lock(put, at, drop):
    data = GOLDEN.encode()
    try:
        loads(data[:at] + put + data[at + drop :], "os.lock")
    except InputError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("base", {}, "base"),
        ("base@sid,cloud", {"b": "x y", "a": "1"}, "base@sid,cloud --set a=1 --set 'b=x y'"),
        ("base", {"a": "it's"}, "base --set 'a=it'\"'\"'s'"),
    ],
)
def test_a_slot_is_what_a_person_would_type(name, given, expected):
    assert slot(name, given) == expected
    assert of_slot(expected) == (name, frozenset(given))


def test_a_slot_by_hand_is_read_as_far_as_it_goes():
    assert of_slot("base --set 'a") == ("base", frozenset(["'a"]))
