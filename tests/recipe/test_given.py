"""What `--set` changed that a node depends on: the lock keeps an entry for each such set of values."""

from typing import Any

TEXT = """\
version: 1
vars: {release: trixie, image: "debian:${release}", word: hello, os: linux/amd64}
platform: "${os}"
nodes:
  base: {kind: base, image: "${image}"}
  site: {kind: layer, install: ["${word}"]}
  top: {kind: layer, on: base}
  os: {kind: image, layers: [top, site]}
  only: {kind: layer, when: {release: sid}}
"""


def given(read: Any, text: str = TEXT, **values: str) -> dict[str, dict[str, str]]:
    return {node.name: dict(node.given) for node in read(text, **values).nodes if node.given}


def test_nothing_is_set(read: Any) -> None:
    assert given(read) == {}


def test_what_the_recipe_says_anyway_counts_for_nothing(read: Any) -> None:
    assert given(read, release="trixie", word="hello") == {}
    assert given(read, image="debian:trixie") == {}


def test_a_value_counts_for_who_depends_on_it_near_and_far(read: Any) -> None:
    sid = {"release": "sid"}
    assert given(read, release="sid") == {"base": sid, "top": sid, "os": sid, "only": sid}
    assert given(read, word="bye") == {"site": {"word": "bye"}, "os": {"word": "bye"}}
    both = given(read, release="sid", word="bye")
    assert both["os"] == {"release": "sid", "word": "bye"} and both["top"] == sid


def test_a_value_that_is_replaced_hides_what_was_behind_it(read: Any) -> None:
    found = given(read, release="sid", image="x")
    assert found["base"] == {"image": "x"} and found["only"] == {"release": "sid"}


def test_platform_and_epoch_are_of_all_nodes(read: Any) -> None:
    recipe = read(TEXT, os="linux/arm64")
    assert recipe.given == {"os": "linux/arm64"}
    assert all(node.given == recipe.given for node in recipe.nodes)
    assert read(TEXT, word="bye").given == {}


def test_names_and_what_may_be_set_are_known(read: Any) -> None:
    recipe = read(TEXT)
    assert recipe.names == {"base", "site", "top", "os", "only"}
    assert recipe.settable == {"release", "image", "word", "os"}


def test_an_axis_is_in_the_name_and_not_among_the_values(read: Any) -> None:
    text = TEXT.replace("nodes:", "matrix: {release: [trixie, sid]}\nnodes:")
    assert given(read, text, release="sid") == {}
    assert given(read, text, word="bye") == {
        "site": {"word": "bye"}, "os@trixie": {"word": "bye"}, "os@sid": {"word": "bye"},
    }  # fmt: skip
