"""What holds for any recipe: order never matters, and nothing but a KbuildError ever comes out."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from small_kinds import LayerSpec

from kairosbuild.core.errors import KbuildError
from kairosbuild.recipe.declaration import Recipe
from kairosbuild.recipe.instances import typed_spec

words = st.text("abcdefghij0123456789-.", min_size=1, max_size=6)
quoted = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cc", "Cs", "Cn"]), max_size=8
)


def yaml(value: object) -> str:
    """Flow YAML with every text single-quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml(key)}: {yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else str(value)


def shuffled(value, chance: random.Random):
    """The same value with the entries of every mapping in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return {key: shuffled(item, chance) for key, item in items}
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@st.composite
def recipes(draw) -> dict:
    """A right recipe as a plain value."""
    names = draw(st.lists(words.filter(lambda w: w[0] not in "-."), min_size=1, max_size=5, unique=True))
    nodes = {}
    for at, name in enumerate(names):
        optional = {
            "install": st.lists(st.from_regex(r"[a-z0-9.+-]{1,5}", fullmatch=True), max_size=3),
            "labels": st.dictionaries(words, quoted.filter(lambda t: "$" not in t), max_size=3),
            "count": st.integers(1, 9),
            "quick": st.booleans(),
            "release": st.sampled_from(["42", "43", "rawhide"]),
            "space": st.sampled_from(["1K", "5M", "0"]),
            "inputs": st.dictionaries(words, st.sampled_from(names[:at]), max_size=2) if at else st.just({}),
            "pieces": st.lists(
                st.fixed_dictionaries(
                    {"source": st.just("tree")}, optional={"mode": st.sampled_from(["0600", "755"])}
                ),
                max_size=2,
            ),
        }
        nodes[name] = draw(st.fixed_dictionaries({"kind": st.just("layer")}, optional=optional))
        if at and draw(st.booleans()):
            nodes[name]["on"] = names[at - 1]
    variables = {"a": draw(quoted.filter(lambda t: "$" not in t)), "b": "${a}", "c": "${b}${a}"}
    return {"version": 1, "name": "p", "vars": variables, "nodes": nodes, "publish": {"targets": names[:2]}}


@given(recipes(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_order_of_mappings_never_changes_a_declaration(read, recipe, chance):
    one, other = read(yaml(recipe)), read(yaml(shuffled(recipe, chance)))
    assert {n.name: n for n in one.nodes} == {n.name: n for n in other.nodes}
    assert one.publish == other.publish
    assert one.vars == other.vars


@given(recipes())
@settings(max_examples=60)
def test_values_arrive_as_written(read, recipe):
    for node in read(yaml(recipe)).nodes:
        written, spec = recipe["nodes"][node.name], typed_spec(LayerSpec, node)
        assert spec.labels == written.get("labels", {})
        assert spec.install == tuple(written.get("install", ()))
        assert spec.inputs == written.get("inputs", {})
        assert spec.on == written.get("on")
        assert spec.count == written.get("count", 1)
        assert [p.source for p in spec.pieces] == [p["source"] for p in written.get("pieces", [])]


def survives(read, data) -> None:
    try:
        assert isinstance(read(data), Recipe)
    except KbuildError as error:
        assert error.reason and str(error)


pieces = st.sampled_from(
    [
        "version: 1\n",
        "name: x\n",
        "nodes:\n",
        "  a: ",
        "  b: {kind: layer, on: a}\n",
        "kind: layer",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "\n",
        "  ",
        "- ",
        "'",
        '"',
        "&a ",
        "*a",
        "!!x ",
        "? ",
        "| \n",
        "> \n",
        "${a}",
        "${",
        "$$",
        "~",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "#",
        "\t",
        "\\",
        "\\x00",
        "vars: {a: 1}\n",
        "publish: ",
        "install: ",
        "pieces: ",
        "source: tree",
        "labels: ",
        "count: ",
        "space: ",
        "tree: ",
        "/",
        "..",
        "\u2028",
        "\x85",
        "\ufeff",
        "é",
        "😀",
    ]
)


@given(st.lists(pieces, max_size=40).map("".join))
@settings(max_examples=400)
def test_any_yaml_like_text_is_a_recipe_or_an_error(read, text):
    survives(read, text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_recipe_or_an_error(read, data):
    survives(read, data)


@given(recipes(), st.data())
@settings(max_examples=80)
def test_a_damaged_recipe_is_a_recipe_or_an_error(read, recipe, data):
    text = yaml(recipe).encode()
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(st.one_of(st.binary(max_size=3), pieces.map(str.encode)))
    survives(read, text[:at] + put + text[at + data.draw(st.integers(0, 4)) :])


scalar = st.one_of(
    words, st.sampled_from(["${a}", "tree", "../x", "", "~", "base"]), st.integers(), st.booleans()
)
trees = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                words, st.sampled_from(["kind", "on", "install", "pieces", "named", "source", "labels"])
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        words, st.one_of(trees, trees.map(lambda t: {"kind": "layer", "named": t, "on": t})), max_size=3
    ),
    trees,
    trees,
)
def test_any_tree_is_a_recipe_or_an_error(read, nodes, variables, publish):
    survives(read, yaml({"version": 1, "nodes": nodes, "vars": variables, "publish": publish}))
