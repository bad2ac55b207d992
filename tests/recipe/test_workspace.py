from pathlib import Path

import pytest

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.recipe.workspace import find, user_file

FULL = """
version: 1
recipes: [os/*.yaml, extra.yaml]
defaults: {jobs: 3, keep_going: true, progress: plain}
mirrors: {debian: "http://mirror.example.org/debian"}
cache: {dir: .store, from: [registry.example.com/cache], to: registry.example.com/cache}
registry: {to: "oci:out", insecure: true}
toolchain: {suite: sid}
"""


def test_found_by_walking_up(tmp_path: Path):
    (tmp_path / "BUILD.yaml").write_text(FULL)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    found = find(deep)
    assert (found.root, found.file) == (tmp_path, tmp_path / "BUILD.yaml")
    assert (found.defaults.jobs, found.defaults.keep_going, found.defaults.progress) == (3, True, "plain")
    assert found.mirrors == {"debian": "http://mirror.example.org/debian"}
    assert found.cache.dir == tmp_path / ".store"
    assert (found.cache.from_, found.cache.to) == (
        ("registry.example.com/cache",),
        "registry.example.com/cache",
    )
    assert (found.registry.to, found.registry.insecure, found.toolchain.suite) == ("oci:out", True, "sid")


def test_an_absolute_cache_stays_absolute(tmp_path: Path):
    (tmp_path / "BUILD.yaml").write_text("cache: {dir: /srv/cache}")
    assert find(tmp_path).cache.dir == Path("/srv/cache")


def test_recipe_files_are_found_once_and_sorted(tmp_path: Path):
    (tmp_path / "BUILD.yaml").write_text("recipes: ['r/*.yaml', r/a.yaml, none.yaml]")
    (tmp_path / "r").mkdir()
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / "r" / name).touch()
    assert find(tmp_path).recipe_files() == (tmp_path / "r" / "a.yaml", tmp_path / "r" / "b.yaml")


@pytest.mark.parametrize(
    ("recipe", "root"), [("w/recipes/os.yaml", "w"), ("w/os.yaml", "w"), ("w/sub/os.yaml", "w/sub")]
)
def test_defaults_without_one(here: Path, recipe, root):
    found = find(here, here / recipe)
    assert (found.root, found.file, found.cache.dir) == (here / root, None, here / root / "cache")
    assert (found.defaults.jobs, found.toolchain.suite, dict(found.mirrors)) == (None, "trixie", {})


def test_a_recipe_named_from_elsewhere_finds_its_own(here: Path):
    (here / "mine").mkdir()
    (here / "mine" / "BUILD.yaml").write_text("toolchain: {suite: mine}")
    (here / "theirs" / "recipes").mkdir(parents=True)
    (here / "theirs" / "BUILD.yaml").write_text("toolchain: {suite: theirs}")
    recipe = here / "theirs" / "recipes" / "os.yaml"
    assert find(here / "mine", recipe).toolchain.suite == "theirs"
    assert find(here / "mine").toolchain.suite == "mine"
    assert find(here / "mine", here / "alone" / "os.yaml").root == here / "alone"


BAD = [
    ("version: 2", "out-of-range", 1, 10),
    ("mirors: {}", "unknown-field", 1, 1),
    ("mirrors: {debian: mirror.example.org}", "bad-value", 1, 19),
    ("defaults: {jobs: 0}", "out-of-range", 1, 18),
    ("defaults: {job: 1}", "unknown-field", 1, 12),
    ("cache: {from: x}", "wrong-type", 1, 15),
    ("cache: {dir: ''}", "too-few", 1, 14),
    ("registry: {insecure: yes}", "wrong-type", 1, 22),
    ("toolchain: {suite: ../x}", "bad-value", 1, 20),
    ("recipes: ${x}", "wrong-type", 1, 10),
    ("recipes: ['${x}']", "undefined-variable", 1, 11),
    ("a: 1\na: 2", "duplicate-key", 2, 1),
]


@pytest.mark.parametrize(("text", "reason", "line", "column"), BAD, ids=[row[0][:40] for row in BAD])
def test_bad_workspace_file(tmp_path: Path, text, reason, line, column):
    (tmp_path / "BUILD.yaml").write_text(text)
    with pytest.raises(KbuildError) as caught:
        find(tmp_path)
    place = caught.value.origin
    assert (caught.value.reason, place.line, place.column) == (reason, line, column)
    assert place.file == str(tmp_path / "BUILD.yaml")


def test_the_person_wins_over_the_workspace(tmp_path: Path):
    (tmp_path / "BUILD.yaml").write_text(FULL)
    mine = tmp_path / "config.yaml"
    mine.write_text(
        "mirrors: {debian: 'http://near/debian', other: 'https://o'}\ncache: {dir: /big/cache, from: []}\n"
    )
    found = find(tmp_path, user=mine)
    assert found.mirrors == {"debian": "http://near/debian", "other": "https://o"}
    assert (found.cache.dir, found.cache.from_) == (Path("/big/cache"), ())
    assert found.cache.to == "registry.example.com/cache"


def test_the_persons_home_is_expanded(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    mine = tmp_path / "config.yaml"
    mine.write_text("cache: {dir: ~/cache}")
    assert find(tmp_path, user=mine).cache.dir == Path("/home/somebody/cache")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("toolchain: {suite: sid}", "unknown-field"),
        ("cache: {dir: relative}", "bad-value"),
        ("[]", "wrong-type"),
    ],
)
def test_bad_settings_of_the_person(tmp_path: Path, text, reason):
    mine = tmp_path / "config.yaml"
    mine.write_text(text)
    with pytest.raises(InputError) as caught:
        find(tmp_path, user=mine)
    assert (caught.value.reason, caught.value.origin.file) == (reason, str(mine))


def test_no_settings_file_is_fine(tmp_path: Path):
    assert find(tmp_path, user=tmp_path / "none.yaml").root == tmp_path


def test_where_the_settings_are():
    assert user_file({"XDG_CONFIG_HOME": "/c", "HOME": "/h"}) == Path("/c/kairosbuild/config.yaml")
    assert user_file({"HOME": "/h"}) == Path("/h/.config/kairosbuild/config.yaml")
    assert user_file({"XDG_CONFIG_HOME": "relative", "HOME": "/h"}) == Path(
        "/h/.config/kairosbuild/config.yaml"
    )
