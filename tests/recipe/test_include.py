"""Several files as one recipe: who wins, who clashes, where a value stands, and what is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_kinds import KINDS
from test_recipe_properties import recipes, yaml

from kairosbuild.core.errors import KbuildError, Problems
from kairosbuild.recipe.declaration import Recipe
from kairosbuild.recipe.load import load
from kairosbuild.recipe.workspace import Cache, Workspace

BASE = "version: 1\nvars: {release: trixie}\nnodes:\n  base: {kind: base, image: '${release}'}\n"


def put(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def read(root: Path, file: str = "r.yaml", **given: str) -> Recipe:
    return load(root / file, KINDS, workspace=Workspace(root, Cache(root / "cache")), set_vars=given)


def told(root: Path, file: str = "r.yaml") -> list[tuple[str, str, int, int]]:
    """The problems as (reason, file below the root, line, column)."""
    with pytest.raises(KbuildError) as caught:
        read(root, file)
    error = caught.value
    each = error.problems if isinstance(error, Problems) else (error,)
    places = [(p.reason, p.origin) for p in each]
    return [(reason, str(Path(o.file).relative_to(root)), o.line, o.column) for reason, o in places if o]


def specs(recipe: Recipe) -> dict[str, Any]:
    return {node.name: node.spec for node in recipe.nodes}


def test_nodes_of_both_may_name_each_other(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [include/os.yaml]\nnodes: {base: {kind: base, image: x}}",
        "include/os.yaml": "version: 1\nname: other\nnodes: {os: {kind: image, layers: [base]}}\npublish: {targets: [os]}",
    })  # fmt: skip
    recipe = read(tmp_path)
    assert [node.name for node in recipe.nodes] == ["os", "base"]
    assert (recipe.name, recipe.publish.targets) == ("r", ("os",))
    assert [path for path, _ in recipe.files] == [str(tmp_path / "include/os.yaml")]


def test_the_including_file_has_the_last_word_on_all_but_nodes(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml]\nvars: {release: sid}\nepoch: 1700000000\npublish: {tags: [mine]}\n",
        "b.yaml": BASE + "epoch: 1600000000\npublish: {targets: [base], tags: [theirs]}\n",
    })  # fmt: skip
    recipe = read(tmp_path)
    assert specs(recipe)["base"]["image"] == "sid"
    assert (recipe.epoch, recipe.publish.tags, recipe.publish.targets) == (1700000000, ("mine",), ("base",))
    assert specs(read(tmp_path, release="bookworm"))["base"]["image"] == "bookworm", "--set is above all"


def test_every_value_keeps_its_place(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml]\nnodes:\n  x: {kind: layer, count: 99}\n",
        "b.yaml": "version: 1\nnodes:\n  y: {kind: layer, count: 98}\nnodse: {}\n",
    })  # fmt: skip
    assert told(tmp_path) == [
        ("out-of-range", "b.yaml", 3, 27), ("unknown-field", "b.yaml", 4, 1), ("out-of-range", "r.yaml", 4, 27),
    ]  # fmt: skip


def test_override_of_fields_and_of_the_node(tmp_path: Path) -> None:
    below = "version: 1\nnodes: {a: {kind: layer, count: 3, install: [x]}, b: {kind: layer, count: 3}}"
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml]\nnodes:\n  a: {override: fields, count: 4}\n"
        "  b: {override: node, kind: base, image: i}\n",
        "b.yaml": below,
    })  # fmt: skip
    found = specs(read(tmp_path))
    assert (found["a"]["count"], found["a"]["install"]) == (4, ["x"])
    assert found["b"] == {"image": "i", "sha256": None}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("nodes:\n  base: {kind: base, image: x}", ("include-clash", "r.yaml", 4, 3)),
        ("nodes:\n  base: {override: all, image: x}", ("bad-choice", "r.yaml", 4, 20)),
        ("nodes:\n  other: {override: node, kind: layer}", ("override-nothing", "r.yaml", 4, 21)),
    ],
)
def test_what_is_no_override(tmp_path: Path, own: str, expected: tuple[str, str, int, int]) -> None:
    put(tmp_path, {"r.yaml": f"version: 1\ninclude: [b.yaml]\n{own}\n", "b.yaml": BASE})
    assert told(tmp_path)[0] == expected


def test_override_without_any_include(tmp_path: Path) -> None:
    put(tmp_path, {"r.yaml": "version: 1\nnodes: {a: {kind: layer, override: node}}"})
    assert told(tmp_path) == [("override-nothing", "r.yaml", 2, 26)]


def test_two_that_say_the_same_clash_and_both_places_are_named(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml, c.yaml]\n",
        "b.yaml": BASE,
        "c.yaml": "version: 1\n" + BASE.replace("version: 1\n", ""),
    })  # fmt: skip
    with pytest.raises(Problems) as caught:
        read(tmp_path)
    assert {problem.reason for problem in caught.value.problems} == {"include-clash"}
    text = str(caught.value)
    assert f"{tmp_path}/b.yaml:2:8" in text and f"{tmp_path}/c.yaml:2:8" in text and "release" in text
    assert f"{tmp_path}/b.yaml:4:3" in text and f"{tmp_path}/c.yaml:4:3" in text


def test_the_including_file_settles_a_clash(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml, c.yaml]\nvars: {release: sid}\n"
        "nodes: {base: {override: node, kind: base, image: '${release}'}}\n",
        "b.yaml": BASE,
        "c.yaml": BASE,
    })  # fmt: skip
    assert specs(read(tmp_path))["base"]["image"] == "sid"


def test_fields_over_two_nodes_are_a_clash_still(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [b.yaml, c.yaml]\nvars: {release: sid}\n"
        "nodes: {base: {override: fields, image: x}}\n",
        "b.yaml": BASE,
        "c.yaml": BASE,
    })  # fmt: skip
    assert told(tmp_path) == [("include-clash", "c.yaml", 4, 3)]


def test_a_diamond_is_read_once_and_who_builds_on_the_other_wins(tmp_path: Path) -> None:
    for includes in itertools.permutations(["b.yaml", "c.yaml", "sub/../d.yaml"]):
        put(tmp_path, {
            "r.yaml": f"version: 1\ninclude: [{', '.join(includes)}]\n",
            "b.yaml": "version: 1\ninclude: [d.yaml]\nvars: {release: sid}\n",
            "c.yaml": "version: 1\ninclude: [./d.yaml]\nnodes: {top: {kind: layer, on: base}}\n",
            "d.yaml": BASE, "sub/x": "",
        })  # fmt: skip
        recipe = read(tmp_path)
        assert specs(recipe)["base"]["image"] == "sid"
        assert sorted(Path(path).name for path, _ in recipe.files) == ["b.yaml", "c.yaml", "d.yaml"]


def test_a_cycle_is_a_path(tmp_path: Path) -> None:
    put(tmp_path, {
        "r.yaml": "version: 1\ninclude: [a.yaml]\nnodes: {}\n",
        "a.yaml": "version: 1\ninclude: [b/b.yaml]\n",
        "b/b.yaml": "version: 1\ninclude: [../r.yaml]\n",
    })  # fmt: skip
    with pytest.raises(KbuildError) as caught:
        read(tmp_path)
    assert caught.value.reason == "include-cycle"
    names = [f"{tmp_path}/{name}" for name in ("r.yaml", "a.yaml", "b/b.yaml", "r.yaml")]
    assert " → ".join(names) in caught.value.message
    assert str(caught.value.origin) == f"{tmp_path}/b/b.yaml:2:11"


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("https://example.com/a.yaml", "include-remote"),
        ("oci://example.com/a@sha256:" + "0" * 64, "include-remote"),
        ("git@example.com:a/b", "include-remote"),
        ("/etc/passwd", "include-outside"),
        ("../outside.yaml", "include-outside"),
        ("link.yaml", "include-outside"),
        ("nowhere.yaml", "missing-include"),
        (".", "include-outside"),
        ("folder", "missing-include"),
        ("'${a}.yaml'", "include-variable"),
        ("[a]", "wrong-type"),
        ("''", "include-outside"),
        ("", "wrong-type"),
        ("latin.yaml", "yaml-encoding"),
        ("list.yaml", "wrong-type"),
        ("old.yaml", "include-version"),
        ("none.yaml", "include-version"),
    ],
)
def test_what_is_no_include(tmp_path: Path, written: str, reason: str) -> None:
    root = tmp_path / "workspace"
    put(tmp_path, {"outside.yaml": BASE})
    put(root, {
        "r.yaml": f"version: 1\ninclude:\n- {written}\nnodes: {{}}\n", "folder/x": "",
        "list.yaml": "[]", "old.yaml": "version: 0", "none.yaml": "vars: {}",
    })  # fmt: skip
    (root / "latin.yaml").write_bytes(b"version: 1\n# \xe4\n")
    (root / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    found = told(root)
    assert [row[0] for row in found] == [reason]


def test_include_is_a_list(tmp_path: Path) -> None:
    put(tmp_path, {"r.yaml": "version: 1\ninclude: b.yaml\nnodes: {}\n", "b.yaml": BASE})
    assert told(tmp_path) == [("wrong-type", "r.yaml", 2, 10)]


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    names = [f"f{number}.yaml" for number in range(250)]
    put(tmp_path, dict.fromkeys(names, "version: 1"))
    put(tmp_path, {"r.yaml": f"version: 1\ninclude: [{', '.join(names)}]\nnodes: {{}}\n"})
    assert {row[0] for row in told(tmp_path)} == {"include-limit"}


@given(recipes(), st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_recipe_cut_into_files_in_any_order_is_the_same_recipe(
    tmp_path: Path, recipe: dict[str, Any], chance: random.Random, pieces: int
) -> None:
    put(tmp_path, {"whole.yaml": yaml(recipe), "tree/etc/motd": ""})
    cut: list[dict[str, Any]] = [{"version": 1, "vars": {}, "nodes": {}} for _ in range(pieces)]
    for part in ("vars", "nodes"):
        for name, value in recipe[part].items():
            chance.choice(cut)[part][name] = value
    cut[-1]["publish"] = recipe["publish"]
    names = [f"piece{number}.yaml" for number in range(pieces)]
    put(tmp_path, {name: yaml(piece) for name, piece in zip(names, cut, strict=True)})
    found = []
    for _ in range(2):
        chance.shuffle(names)
        put(tmp_path, {"r.yaml": yaml({"version": 1, "name": "p", "include": names})})
        found.append(read(tmp_path))
    whole = read(tmp_path, "whole.yaml")
    for one in found:
        assert {node.name: node for node in one.nodes} == {node.name: node for node in whole.nodes}
        assert (one.vars, one.publish) == (whole.vars, whole.publish)
