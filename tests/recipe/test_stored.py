import json

import pytest
from small_kinds import LayerSpec

from kairosbuild.recipe.instances import typed_spec
from kairosbuild.recipe.stored import declaration_from_json, declaration_json, recipe_from_json, recipe_json

TEXT = """
version: 1
name: t
vars: {a: 6.10}
nodes:
  base: {kind: base, image: x}
  n: {kind: layer, on: base, install: [b, "${a}"], inputs: {x: base}, pieces: [{source: tree}], timeout: 5}
publish: {targets: [n], requires: [base], tags: [a]}
"""


def test_a_declaration_and_back(read):
    for node in read(TEXT).nodes:
        back = declaration_from_json(json.loads(json.dumps(declaration_json(node))))
        assert back == node
        assert (back.hints, back.origin) == (node.hints, node.origin)


def test_a_recipe_and_back(read):
    recipe = read(TEXT)
    back = recipe_from_json(json.loads(json.dumps(recipe_json(recipe))), file="r.yaml", root=recipe.root)
    assert back == recipe
    assert [(n.hints, n.origin) for n in back.nodes] == [(n.hints, n.origin) for n in recipe.nodes]
    assert back.publish.origin == recipe.publish.origin
    assert typed_spec(LayerSpec, back.nodes[1]) == typed_spec(LayerSpec, recipe.nodes[1])


def test_it_says_nothing_of_the_place(read, workspace):
    assert str(workspace.root) not in json.dumps(recipe_json(read(TEXT)))


@pytest.mark.parametrize("damage", [{"format": 0}, {"nodes": [["n"]]}, {"nodes": None}])
def test_what_was_never_written_is_refused(read, damage):
    value = {**json.loads(json.dumps(recipe_json(read(TEXT)))), **damage}
    with pytest.raises((KeyError, TypeError, ValueError)):
        recipe_from_json(value, file="r.yaml", root="/")
