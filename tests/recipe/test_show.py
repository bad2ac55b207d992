"""What `kbuild show` knows: the place, the default, the variable behind every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_kinds import KINDS
from test_include import put

from kairosbuild.recipe.load import loading
from kairosbuild.recipe.show import Shown, shown
from kairosbuild.recipe.workspace import Cache, Workspace

RECIPE = """\
version: 1
include: [common.yaml]
vars: {image: "x:${release}", word: w}
matrix: {release: {sid: {extra: e1}, trixie: {extra: e2}}}
nodes:
  base: {kind: base, image: "${image}"}
  top: {override: fields, count: 4}
  gone: {kind: layer, when: {arch: arm64}}
"""
COMMON = """\
version: 1
vars: {word: other}
nodes:
  top: {kind: layer, on: base, count: 3, install: ["${extra}", "${word}"], piece: {source: tree}, timeout: 10m}
publish: {targets: [top]}
"""


@pytest.fixture
def show(tmp_path: Path) -> Any:
    def show(**given: str) -> Shown:
        put(tmp_path, {"r.yaml": RECIPE, "common.yaml": COMMON, "tree/x": ""})
        workspace = Workspace(tmp_path, Cache(tmp_path))
        return shown(loading(tmp_path / "r.yaml", KINDS, workspace=workspace, set_vars=given))

    return show


def rows(found: Shown, node: str) -> dict[str, tuple[Any, str]]:
    one = next(each for each in found.nodes if each.name == node)
    return {value.path: (value.value, short(value.source)) for value in one.fields}


def short(text: str) -> str:
    """A source without the folders in it."""
    return " ".join(word.rpartition("/")[2] for word in text.split())


def test_places_defaults_and_variables(show: Any) -> None:
    found = rows(show(), "base@sid")
    assert found["image"] == ("x:sid", "r.yaml:6:29, image: r.yaml:3:15, release: matrix sid")
    assert found["sha256"] == (None, "default")
    top = rows(show(), "top@trixie")
    assert top["count"] == (4, "r.yaml:7:34"), "the field that was put over the included one"
    assert top["on"] == ("base@trixie", "common.yaml:4:26")
    assert top["install"] == (["e2", "w"], "common.yaml:4:51, extra: r.yaml:4:54, word: r.yaml:3:37")
    assert top["piece.source"] == ("tree", "common.yaml:4:92")
    assert top["piece.mode"] == ("0644", "default")
    assert top["timeout"] == (600, "common.yaml:4:108")


def test_what_set_gave(show: Any) -> None:
    found = show(word="mine", release="sid")
    assert {node.name for node in found.nodes} == {"top@sid", "base@sid", "gone"}
    assert rows(found, "top@sid")["install"][1].endswith("word: --set")
    assert [(v.path, v.value, v.source) for v in found.variables if v.path == "word"] == [
        ("word", "mine", "word: --set")
    ]


def test_the_top_the_axes_and_what_is_left_out(show: Any) -> None:
    found = show()
    top = {value.path: (value.value, short(value.source)) for value in found.top}
    assert top["publish.targets"] == (["top"], "common.yaml:5:20")
    assert top["platform"] == ("linux/amd64", "default")
    axis = next(value for value in found.variables if value.path == "release")
    assert axis.value == ["sid", "trixie"]
    gone = next(node for node in found.nodes if node.name == "gone")
    assert short(str(gone.absent)) == "r.yaml:8:23" and gone.fields == ()


def test_every_field_of_the_kind_is_told_once(show: Any) -> None:
    paths = [value.path for value in next(n for n in show().nodes if n.name == "top@sid").fields]
    assert len(paths) == len(set(paths)) and {"install", "labels", "inputs", "tree", "extra", "even"} <= set(
        paths
    )
