from dataclasses import replace
from pathlib import Path

import pytest
from small_kinds import KINDS, ImageSpec, LayerSpec, Piece

from kairosbuild.core import canonical
from kairosbuild.recipe.instances import from_json, to_json, typed_spec
from kairosbuild.recipe.language import EPOCH
from kairosbuild.recipe.load import load
from kairosbuild.recipe.workspace import Cache, Workspace

HEX = "0123456789abcdef" * 4

FULL = """
version: 1
name: full
vars: {release: 6.10, where: "${root}/etc", root: tree, answer: 4}
epoch: 1700000000
platform: linux/arm64
nodes:
  base: {kind: base, image: "debian:${release}", sha256: HEX}
  all:
    kind: layer
    on: base
    install: [a, 6.10, no, "${release}"]
    labels: {on: yes, 8080: "1", "a.b": 010}
    from: x
    release: 42
    count: ${answer}
    quick: true
    space: 2G
    wait: 10m
    permissions: 644
    sha256: sha256:HEX
    tree: ${where}
    extra: {one: tree/etc/motd, "t.w": inward/etc}
    inputs: {b: base}
    piece: {source: tree, after: base}
    pieces: [{source: tree, mode: "0600"}, {source: inward}]
    named: {n: {source: tree/etc, after: base}}
    even: 4
    retries: 3
    timeout: 2h
    cpu: 2
    memory: 512M
    tags: [slow]
    doc: "everything"
  small: {kind: layer}
  os: {kind: image, layers: [small, all]}
publish: {targets: [os], to: "example.com/os/${release}", tags: [a, "b"], requires: [all]}
""".replace("HEX", HEX)


def test_every_field_is_normalised(read):
    recipe = read(FULL)
    node = {node.name: node for node in recipe.nodes}["all"]
    assert node.spec == {
        "install": ["a", "6.10", "no", "6.10"],
        "labels": {"on": "yes", "8080": "1", "a.b": "010"},
        "from_": "x",
        "release": "42",
        "count": 4,
        "quick": True,
        "space": 2 << 30,
        "wait": 600,
        "permissions": "0644",
        "sha256": f"sha256:{HEX}",
        "piece": {"mode": "0644"},
        "pieces": [{"mode": "0600"}, {"mode": "0644"}],
        "named": {"n": {"mode": "0644"}},
        "even": 4,
    }
    assert node.refs == {
        "on": ("base",),
        "inputs.b": ("base",),
        "piece.after": ("base",),
        "pieces.0.after": (),
        "pieces.1.after": (),
        "named.n.after": ("base",),
    }
    assert node.sources == {
        "tree": "tree/etc",
        "extra.one": "tree/etc/motd",
        "extra.t.w": "inward/etc",
        "piece.source": "tree",
        "pieces.0.source": "tree",
        "pieces.1.source": "inward",
        "named.n.source": "tree/etc",
    }
    assert node.hints == {
        "retries": 3,
        "timeout": 7200,
        "cpu": 2,
        "memory": 512 << 20,
        "tags": ["slow"],
        "doc": "everything",
    }
    assert (node.origin.line, node.origin.column) == (9, 3)


def test_the_kind_sees_its_spec(read):
    nodes = {node.name: node for node in read(FULL).nodes}
    assert typed_spec(LayerSpec, nodes["all"]) == LayerSpec(
        on="base",
        install=("a", "6.10", "no", "6.10"),
        labels={"on": "yes", "8080": "1", "a.b": "010"},
        from_="x",
        release="42",
        count=4,
        quick=True,
        space=2 << 30,
        wait=600,
        permissions="0644",
        sha256=f"sha256:{HEX}",
        tree="tree/etc",
        extra={"one": "tree/etc/motd", "t.w": "inward/etc"},
        inputs={"b": "base"},
        piece=Piece(source="tree", after="base"),
        pieces=(Piece(source="tree", mode="0600"), Piece(source="inward")),
        named={"n": Piece(source="tree/etc", after="base")},
        even=4,
        retries=3,
    )
    assert typed_spec(LayerSpec, nodes["small"]) == LayerSpec()
    assert typed_spec(ImageSpec, nodes["os"]) == ImageSpec(layers=("small", "all"))


def test_the_top(read):
    recipe = read(FULL)
    assert (recipe.name, recipe.file, recipe.epoch, recipe.platform) == (
        "full",
        "r.yaml",
        1700000000,
        "linux/arm64",
    )
    assert recipe.vars == {"release": "6.10", "where": "tree/etc", "root": "tree", "answer": "4"}
    assert [node.name for node in recipe.nodes] == ["base", "all", "small", "os"]
    publish = recipe.publish
    assert (publish.targets, publish.to, publish.tags, publish.requires) == (
        ("os",),
        "example.com/os/6.10",
        ("a", "b"),
        ("all",),
    )


def test_defaults_of_the_top(read):
    recipe = read("version: 1\nnodes: {}")
    assert (recipe.name, recipe.epoch, recipe.platform) == ("r", EPOCH, "linux/amd64")
    assert recipe.nodes == () and recipe.publish.targets == ()


def test_a_default_written_out_is_the_same_declaration(read):
    short = read("version: 1\nnodes: {x: {kind: layer}}").nodes[0]
    long = read(
        'version: 1\nnodes: {x: {kind: layer, install: [], labels: {}, from: "", release: 43, count: 1, '
        'quick: false, space: 0, wait: 0, permissions: "755", extra: {}, inputs: {}, pieces: [], '
        "named: {}, even: 0}}"
    ).nodes[0]
    assert short == long


def test_names_of_references_are_in_the_spec_only_where_they_matter(read):
    nodes = {node.name: node for node in read(FULL).nodes}
    assert nodes["os"].spec == {"layers": ["small", "all"]}
    assert "on" not in nodes["all"].spec


def test_set_wins_and_is_not_expanded(read):
    text = 'version: 1\nvars: {a: x, b: "${a}-${a}"}\nnodes: {n: {kind: base, image: "${b}"}}'
    assert read(text).nodes[0].spec["image"] == "x-x"
    assert read(text, a="${b}").nodes[0].spec["image"] == "${b}-${b}"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("$$", "$"),
        ("$${a}", "${a}"),
        ("$HOME", "$HOME"),
        ("$(date)", "$(date)"),
        ("a$", "a$"),
        ("$$$$", "$$"),
        ("$${a}${a}$", "${a}1$"),
        ("x${a}y${a}z", "x1y1z"),
    ],
)
def test_dollar_signs(read, written, value):
    assert (
        read(f"version: 1\nvars: {{a: 1}}\nnodes: {{n: {{kind: base, image: '{written}'}}}}")
        .nodes[0]
        .spec["image"]
        == value
    )


def test_a_quoted_number_from_a_variable_is_a_number(read):
    text = 'version: 1\nvars: {n: "3"}\nnodes: {n: {kind: layer, count: "${n}"}}'
    assert read(text).nodes[0].spec["count"] == 3
    assert read(text, n="7").nodes[0].spec["count"] == 7


def test_block_text_is_kept(read):
    text = "version: 1\nnodes:\n  n:\n    kind: base\n    image: |\n      one\n      two\n"
    assert read(text).nodes[0].spec["image"] == "one\ntwo\n"


def test_anchors_serve(read):
    text = "version: 1\nnodes: {a: {kind: layer, install: &i [x, y]}, b: {kind: layer, install: *i}}"
    assert [node.spec["install"] for node in read(text).nodes] == [["x", "y"]] * 2


def test_declarations_are_json(read):
    for node in read(FULL).nodes:
        assert canonical.loads(canonical.dumps(node.spec)) == node.spec
        canonical.dumps([node.refs, node.sources, node.hints])


def test_an_origin_is_not_part_of_a_declaration(read):
    one = read("version: 1\nnodes: {n: {kind: layer}}")
    other = read("\n\nversion: 1\nnodes:\n  n: {kind: layer, doc: other, timeout: 9}")
    assert one.nodes[0] == other.nodes[0]
    assert one.nodes[0].origin != other.nodes[0].origin


def test_json_and_back():
    spec = LayerSpec(install=("a",), piece=Piece(source="s"), labels={"a": "b"}, sha256=None)
    assert from_json(LayerSpec, to_json(spec), sources={"piece.source": "s"}) == spec
    assert replace(spec, count=2) != spec


def test_load_reads_a_file_and_takes_its_name(tmp_path: Path):
    file = tmp_path / "recipes" / "tiny.yaml"
    file.parent.mkdir()
    file.write_text("version: 1\nnodes: {n: {kind: layer}}")
    recipe = load(file, KINDS, workspace=Workspace(tmp_path, Cache(tmp_path / "cache")))
    assert (recipe.name, recipe.file, recipe.root) == ("tiny", str(file), str(tmp_path))


def test_a_workspace_under_a_link_is_itself_inside(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("")
    (tmp_path / "link").symlink_to("real")
    file = tmp_path / "link" / "r.yaml"
    file.write_text("version: 1\nnodes: {n: {kind: layer, tree: f}}")
    recipe = load(file, KINDS, workspace=Workspace(tmp_path / "link", Cache(tmp_path)))
    assert recipe.nodes[0].sources == {"tree": "f"}
