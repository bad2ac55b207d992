"""A matrix: which nodes are in which cells, under which names, and that a cell is what `--set` would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recipe_properties import yaml

from kairosbuild.core.errors import KbuildError
from kairosbuild.recipe.declaration import Declaration

RELEASES = """\
version: 1
vars: {image: "debian:${release}", shared: same}
matrix:
  release: [bookworm, trixie]
  kernel:
    cloud: {package: linux-cloud}
    full: {package: linux}
  exclude: [{release: bookworm, kernel: full}]
nodes:
  site: {kind: layer, install: ["${shared}"]}
  base: {kind: base, image: "${image}"}
  kernel: {kind: layer, on: base, install: ["${package}"]}
  tools: {kind: layer, on: base}
  os: {kind: image, layers: [base, kernel, site]}
  slim: {kind: image, layers: [base, site]}
publish: {targets: [os, slim], requires: [tools, kernel]}
"""


def by_name(recipe: Any) -> dict[str, Declaration]:
    return {node.name: node for node in recipe.nodes}


def test_a_node_is_in_a_cell_only_if_it_depends_on_it(read: Any) -> None:
    nodes = by_name(read(RELEASES))
    assert list(nodes) == [
        "site", "base@bookworm", "base@trixie",
        "kernel@bookworm,cloud", "kernel@trixie,cloud", "kernel@trixie,full",
        "tools@bookworm", "tools@trixie",
        "os@bookworm,cloud", "os@trixie,cloud", "os@trixie,full", "slim@bookworm", "slim@trixie",
    ]  # fmt: skip
    assert nodes["kernel@trixie,full"].refs == {"on": ("base@trixie",)}
    assert nodes["kernel@trixie,full"].spec["install"] == ["linux"]
    assert nodes["os@bookworm,cloud"].refs["layers"] == ("base@bookworm", "kernel@bookworm,cloud", "site")
    assert nodes["os@bookworm,cloud"].spec["layers"] == ["base", "kernel", "site"], "names without cells"
    assert nodes["base@bookworm"].spec["image"] == "debian:bookworm"


def test_publishing_of_cells(read: Any) -> None:
    publish = read(RELEASES).publish
    assert publish.targets == (
        "os@bookworm,cloud", "os@trixie,cloud", "os@trixie,full", "slim@bookworm", "slim@trixie",
    )  # fmt: skip
    cell = publish.cells["os@trixie,full"]
    assert (cell.node, cell.suffix, cell.subject) == ("os", "trixie-full", "")
    assert cell.requires == ("tools@trixie", "kernel@trixie,full")
    assert publish.cells["slim@trixie"].requires == (
        "tools@trixie", "kernel@trixie,cloud", "kernel@trixie,full",
    )  # fmt: skip
    assert publish.gates(["os@bookworm,cloud"]) == ("tools@bookworm", "kernel@bookworm,cloud")


def test_the_axis_arch_is_the_platform_of_every_node(read: Any) -> None:
    text = (
        "version: 1\nMATRIX\nnodes:\n  site: {kind: layer}\n  base: {kind: base, image: 'x:${arch}'}\n"
        "  arm: {kind: layer, when: {arch: arm64}}\n  os: {kind: image, layers: [base, site, arm]}\n"
    )
    nodes = by_name(read(text.replace("MATRIX", "matrix: {arch: [amd64, arm64]}")))
    assert list(nodes) == [
        "site@amd64", "site@arm64", "base@amd64", "base@arm64", "arm@arm64", "os@amd64", "os@arm64",
    ]  # fmt: skip
    assert {name: node.platform.rpartition("/")[2] for name, node in nodes.items()} == {
        name: name.partition("@")[2] for name in nodes
    }
    for arch in ("amd64", "arm64"):
        plain = by_name(read(text.replace("MATRIX", f"platform: linux/{arch}\nvars: {{arch: {arch}}}")))
        for name, node in plain.items():
            cell = nodes[f"{name}@{arch}"]
            assert (cell.spec, cell.kind) == (node.spec, node.kind) and not node.platform


def test_set_keeps_one_value_of_an_axis_and_no_name_changes(read: Any) -> None:
    whole = by_name(read(RELEASES))
    part = by_name(read(RELEASES, release="trixie"))
    assert list(part) == [name for name in whole if "bookworm" not in name]
    assert all(part[name] == whole[name] for name in part)
    other = by_name(read(RELEASES, package="mine"))
    assert {n.spec["install"][0] for name, n in other.items() if name.startswith("kernel")} == {"mine"}
    assert "kernel@trixie" in other, "what --set gives is the same along the axis"


def test_an_axis_overrides_a_variable_of_its_name(read: Any) -> None:
    text = "version: 1\nvars: {a: x}\nmatrix: {a: [y, z]}\nnodes: {n: {kind: base, image: '${a}'}}"
    assert {name: node.spec["image"] for name, node in by_name(read(text)).items()} == {
        "n@y": "y",
        "n@z": "z",
    }


WHEN = """\
version: 1
vars: {distribution: debian}
matrix: {board: [pc, rpi4, rpi5]}
platform: linux/amd64
nodes:
  base: {kind: base, image: x}
  firmware: {kind: layer, when: {board: [rpi4, rpi5]}}
  four: {kind: layer, on: firmware, when: {board: rpi4}}
  arm: {kind: layer, when: {arch: arm64}}
  fedora: {kind: layer, when: {distribution: fedora}}
  os: {kind: image, layers: [base, firmware, four, arm, fedora]}
publish: {targets: [os, arm]}
"""


def test_conditions_leave_nodes_out_and_lists_do_without_them(read: Any) -> None:
    recipe = read(WHEN)
    nodes = by_name(recipe)
    assert set(nodes) == {
        "base",
        "firmware@rpi4",
        "firmware@rpi5",
        "four@rpi4",
        "os@pc",
        "os@rpi4",
        "os@rpi5",
    }
    assert nodes["os@pc"].refs["layers"] == ("base",) and nodes["os@pc"].spec["layers"] == ["base"]
    assert nodes["os@rpi4"].spec["layers"] == ["base", "firmware", "four"]
    assert recipe.publish.targets == ("os@pc", "os@rpi4", "os@rpi5")
    assert {"arm", "base"} <= set(by_name(read(WHEN.replace("linux/amd64", "linux/arm64"))))
    assert "fedora" in by_name(read(WHEN, distribution="fedora"))


def test_conditions_without_a_matrix(read: Any) -> None:
    text = WHEN.replace("matrix: {board: [pc, rpi4, rpi5]}\n", "").replace(
        "board: [rpi4, rpi5]", "arch: amd64"
    )
    text = text.replace("board: rpi4", "arch: [amd64, arm64]")
    assert set(by_name(read(text))) == {"base", "firmware", "four", "os"}


def test_a_reference_to_what_is_left_out_is_an_error(read: Any, problems: Any) -> None:
    text = WHEN.replace(
        "four: {kind: layer, on: firmware, when: {board: rpi4}}", "four: {kind: layer, on: firmware}"
    )
    with pytest.raises(KbuildError) as caught:
        read(text)
    error = caught.value
    assert (error.reason, error.origin.line, error.origin.column) == ("absent-node", 8, 27)
    assert "board pc" in error.message and "when" in error.hint


def test_a_list_that_needs_one_is_an_error_when_none_is_left(read: Any, problems: Any) -> None:
    text = "version: 1\nnodes: {a: {kind: layer, when: {arch: arm64}}, os: {kind: image, layers: [a]}}"
    assert problems(read, text) == [("absent-node", 2, 75)]


HEAD = "version: 1\nvars: {release: x}\n"
TAIL = "\nnodes: {n: {kind: layer, install: ['${a}']}}"
BAD = [
    ("matrix: [a]", [("wrong-type", 3, 9), ("undefined-variable", 4, 36)]),
    ("matrix: {a: x}", [("wrong-type", 3, 13)]),
    ("matrix: {a: []}", [("too-few", 3, 13)]),
    ("matrix: {a: [x, x]}", [("duplicate-value", 3, 17)]),
    ("matrix: {a: ['${release}']}", [("bad-value", 3, 14)]),
    ("matrix: {a: ['x,y']}", [("bad-value", 3, 14)]),
    ("matrix: {a: [[x]]}", [("wrong-type", 3, 14)]),
    ("matrix: {arch: [x86], a: [x]}", [("bad-value", 3, 17)]),
    ("matrix: {arch: [amd64], a: [x]}\nplatform: linux/arm64", [("platform-axis", 4, 1)]),
    ("matrix: {1a: [x], a: [x]}", [("bad-name", 3, 10)]),
    ("matrix: {a: {x: y}}", [("wrong-type", 3, 17)]),
    ("matrix: {a: {x: {v: [1]}}}", [("wrong-type", 3, 21)]),
    ("matrix: {a: {x: {1v: 1}}}", [("bad-name", 3, 18)]),
    ("matrix: {a: {x: {v: 1}, y: {}}}", [("matrix-variable", 3, 10)]),
    ("matrix: {a: {x: {v: 1}}, b: {x: {v: 2}}}", [("matrix-variable", 3, 26)]),
    ("matrix: {a: [x], exclude: {a: x}}", [("wrong-type", 3, 27)]),
    ("matrix: {a: [x, y], exclude: [{b: x}]}", [("unknown-condition", 3, 32)]),
    ("matrix: {a: [x, y], exclude: [{a: z}]}", [("bad-choice", 3, 35)]),
    ("matrix: {a: [x, y], exclude: [{a: [x, y]}]}", [("matrix-empty", 3, 9)]),
    ("name: '${a}'\nmatrix: {a: [x]}", [("matrix-variable", 3, 7)]),
    ("publish: {to: 'oci:${b}'}\nvars2: {}\nmatrix: {a: [x]}", None),
]


@pytest.mark.parametrize(("written", "expected"), BAD, ids=[written for written, _ in BAD])
def test_what_is_no_matrix(read: Any, problems: Any, written: str, expected: Any) -> None:
    found = problems(read, HEAD + written + TAIL)
    if expected:
        assert found == expected
    else:
        assert {row[0] for row in found} == {"unknown-field", "undefined-variable"}


CONDITIONS = [
    ("{}", None),
    ("x", ("wrong-type", 3, 32)),
    ("{board: pc}", ("unknown-condition", 3, 33)),
    ("{distribution: debian}", ("unknown-condition", 3, 33)),
    ("{arch: x86}", ("bad-choice", 3, 39)),
    ("{a: z}", ("bad-choice", 3, 36)),
    ("{release: '${a}'}", ("wrong-type", 3, 42)),
    ("{release: [[x]]}", ("wrong-type", 3, 43)),
    ("{release: x, arch: amd64, a: [x, y]}", None),
]


@pytest.mark.parametrize(("when", "expected"), CONDITIONS, ids=[when for when, _ in CONDITIONS])
def test_conditions_are_of_a_closed_set(read: Any, problems: Any, when: str, expected: Any) -> None:
    text = f"version: 1\nmatrix: {{a: [x, y]}}\nnodes: {{n: {{kind: layer, when: {when}}}}}\nvars: {{release: x}}"
    if expected:
        assert problems(read, text) == [expected]
    else:
        assert {node.name.partition("@")[0] for node in read(text).nodes} == {"n"}


def test_set_of_no_value_of_the_axis(read: Any, problems: Any) -> None:
    assert problems(read, RELEASES, release="sid") == [("matrix-value", 4, 3)]


def test_too_many_cells(read: Any, problems: Any) -> None:
    values = "[" + ", ".join(f"v{number}" for number in range(40)) + "]"
    assert problems(read, HEAD + f"matrix: {{a: {values}, b: {values}}}" + TAIL) == [("matrix-limit", 3, 9)]


def test_tags_that_would_be_one_are_refused(read: Any, problems: Any) -> None:
    text = (
        "version: 1\nmatrix: {a: [x, x-y], b: [y-z, z], exclude: [{a: x, b: z}, {a: x-y, b: y-z}]}\n"
        "nodes: {n: {kind: base, image: '${a}${b}'}}\npublish: {targets: [n]}"
    )
    assert problems(read, text) == [("matrix-tags", 4, 10)]


def test_a_problem_in_all_cells_is_told_once(read: Any, problems: Any) -> None:
    text = (
        "version: 1\nmatrix: {a: [x, y]}\nnodes: {n: {kind: layer, install: ['${a}'], count: 99, on: none}}"
    )
    assert problems(read, text) == [("out-of-range", 3, 52), ("missing-node", 3, 60)]


def test_a_cycle_across_cells_is_found(read: Any) -> None:
    text = "version: 1\nmatrix: {a: [x, y]}\nnodes: {x: {kind: layer, on: '${a}'}, y: {kind: layer, on: x}}"
    with pytest.raises(KbuildError) as caught:
        read(text)
    assert caught.value.reason in ("cycle", "self-reference")


AXES = {"a": ["p", "q", "r"], "b": ["s", "t"]}
texts = st.sampled_from(["plain", "${a}", "${b}", "x${c}", "${d}", "${a}${b}"])


@st.composite
def recipes(draw: Any) -> dict[str, Any]:
    """A recipe with two axes, of which its nodes use what they like."""
    names = [f"n{number}" for number in range(draw(st.integers(1, 7)))]
    nodes = {}
    for at, name in enumerate(names):
        node: dict[str, Any] = {"kind": "layer", "labels": {"text": draw(texts)}}
        if at:
            below = st.sampled_from(names[:at])
            if draw(st.booleans()):
                node["on"] = draw(below)
            node["inputs"] = draw(st.dictionaries(st.sampled_from("uvw"), below, max_size=2))
        nodes[name] = node
    nodes["os"] = {
        "kind": "image",
        "layers": draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)),
    }
    return {"version": 1, "vars": {"c": "${b}-${a}", "d": "plain"}, "nodes": nodes}


def bare(node: Declaration) -> Declaration:
    """Without the cells in its names."""
    refs = {role: tuple(name.partition("@")[0] for name in names) for role, names in node.refs.items()}
    return replace(node, name=node.name.partition("@")[0], refs=refs)


@given(recipes())
@settings(max_examples=60)
def test_a_cell_is_what_set_would_give_and_the_rest_is_left_alone(read: Any, recipe: dict[str, Any]) -> None:
    matrix = read(yaml({**recipe, "matrix": AXES}))
    every = by_name(matrix)
    reached: set[str] = set()
    for a in AXES["a"]:
        for b in AXES["b"]:
            plain = by_name(read(yaml({**recipe, "vars": {**recipe["vars"], "a": a, "b": b}})))
            for name, node in plain.items():
                cells = (name, f"{name}@{a}", f"{name}@{b}", f"{name}@{a},{b}")
                (found,) = [each for each in cells if each in every]
                assert bare(every[found]) == node
                reached.add(found)
    assert reached == set(every), "no cell is there that nobody asked for"
    for name, node in every.items():
        if "@" in name:
            others = [
                n for n in every.values() if n.name != name and n.name.partition("@")[0] == bare(node).name
            ]
            assert any(other.spec != node.spec or other.refs != node.refs for other in others)


@given(recipes(), st.sampled_from("ab"))
@settings(max_examples=30)
def test_an_axis_more_changes_no_node_that_does_not_use_it(
    read: Any, recipe: dict[str, Any], axis: str
) -> None:
    value = AXES[axis][0]
    other = next(name for name in AXES if name != axis)
    variables = {**recipe["vars"], axis: value}
    one = by_name(read(yaml({**recipe, "vars": variables, "matrix": {other: AXES[other]}})))
    two = by_name(read(yaml({**recipe, "vars": recipe["vars"], "matrix": AXES})))
    for name in one.keys() & two.keys():
        if value not in name:
            assert one[name] == two[name]
