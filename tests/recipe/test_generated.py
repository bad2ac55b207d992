"""What is generated from the kinds is what stands in the repository, and the shipped recipes hold to it."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_recipe_schema import seen

from kairosbuild.kinds.table import TABLE
from kairosbuild.recipe.fields import infos
from kairosbuild.recipe.instances import typed_spec
from kairosbuild.recipe.load import load
from kairosbuild.recipe.reference import reference
from kairosbuild.recipe.schema import recipe_schema, workspace_schema
from kairosbuild.recipe.workspace import find

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
GENERATED = {
    "schema/recipe.schema.json": lambda: (
        json.dumps(recipe_schema(TABLE), indent=2, ensure_ascii=False) + "\n"
    ),
    "schema/workspace.schema.json": lambda: (
        json.dumps(workspace_schema(), indent=2, ensure_ascii=False) + "\n"
    ),
    "docs/recipe-reference.md": lambda: reference(TABLE),
}


@pytest.mark.parametrize("path", GENERATED)
def test_it_is_up_to_date(path):
    """`make generate` writes them anew."""
    assert (ROOT / path).read_text() == GENERATED[path]()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_is_valid(recipe):
    found = load(recipe, TABLE, workspace=find(ROOT, recipe))
    for node in found.nodes:
        assert isinstance(typed_spec(TABLE[node.kind].Spec, node), TABLE[node.kind].Spec)
    errors = Draft202012Validator(recipe_schema(TABLE)).iter_errors(seen(recipe.read_text()))
    assert [error.message for error in errors] == []


def test_the_workspace_file_is_valid():
    errors = Draft202012Validator(workspace_schema()).iter_errors(seen((ROOT / "BUILD.yaml").read_text()))
    assert [error.message for error in errors] == []


@pytest.mark.parametrize("kind", TABLE.values(), ids=lambda kind: kind.name)
def test_every_field_is_described(kind):
    for spec in (kind.Spec, *(info.record for info in infos(kind.Spec).values() if info.record)):
        assert not (spec.__doc__ or "").startswith(f"{spec.__name__}("), spec  # what dataclass puts for none
        assert all(info.doc.strip() for info in infos(spec).values()), spec
