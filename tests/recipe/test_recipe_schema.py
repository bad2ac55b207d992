"""The schema for editors accepts what the parser accepts, and sees what a schema can see."""

import json
import re

import pytest
from hypothesis import given, settings
from jsonschema import Draft202012Validator
from small_kinds import KINDS
from test_bad_recipes import HEAD, NODES, WHOLE
from test_recipe_load import FULL
from test_recipe_properties import recipes
from test_workspace import BAD as BAD_WORKSPACES
from test_workspace import FULL as FULL_WORKSPACE

from kairosbuild.recipe.located import Fields, Items, Located, Text, read
from kairosbuild.recipe.schema import recipe_schema, user_schema, workspace_schema

RECIPE = Draft202012Validator(recipe_schema(KINDS))
WORKSPACE = Draft202012Validator(workspace_schema())

INTEGER = re.compile("[-+]?[0-9]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def editor(value: Located):
    """The value as an editor sees it: YAML 1.2 with its core schema."""
    if isinstance(value, Fields):
        return {key: editor(item) for key, item in value.fields.items()}
    if isinstance(value, Items):
        return [editor(item) for item in value.items]
    assert isinstance(value, Text)
    if not value.plain:
        return value.value
    if value.null:
        return None
    if value.value in ("true", "false"):
        return value.value == "true"
    if INTEGER.fullmatch(value.value) and len(value.value) < 4000:
        return int(value.value)
    return float(value.value) if FLOAT.fullmatch(value.value) else value.value


def seen(text: str):
    return editor(read(text.encode(), "r.yaml"))


@pytest.mark.parametrize(
    "schema", [recipe_schema(KINDS), recipe_schema({}), workspace_schema(), user_schema()]
)
def test_it_is_a_schema(schema):
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "version: 1\nnodes: {}",
        "version: 1\nvars: {a: 1}\nnodes: {x: {kind: layer, count: '${a}', quick: '${a}', space: '${a}K'}}",
        "version: 1\nnodes: {x: {kind: layer, release: '42'}, y: {kind: layer, release: 42}}",
        "version: 1\nnodes: {x: {kind: layer, permissions: 0644}, y: {kind: layer, permissions: '0644'}}",
        "version: 1\nnodes: {x: {kind: layer, install: [6.10, 5]}, 10: {kind: layer}}",
    ],
)
def test_good_recipes_are_valid(text):
    assert [error.message for error in RECIPE.iter_errors(seen(text))] == []


@given(recipes())
@settings(max_examples=30)
def test_any_good_recipe_is_valid(recipe):
    assert RECIPE.is_valid(recipe)


# Only over the whole recipe, only with the workspace at hand, only in code: not a schema's business.
BEYOND = {
    "include-outside",
    "missing-node",
    "self-reference",
    "cycle",
    "wrong-product",
    "kind-check",
    "missing-source",
    "source-outside",
    "bad-path",
    "undefined-variable",
    "variable-cycle",
    "bad-variable",
}
# What an editor reads before the schema does: a number with a leading zero or a point,
# a number as a mode; and a bound on what is written with a unit.
READ_BEFORE = (
    "count: 010",
    "count: 1.0",
    "version: 1.0",
    "permissions: 0899",
    "even: 3",
    "timeout: 0}",
    "space: 2T",
)


def within(table, prefix=""):
    return [
        prefix + text
        for text, expected in table
        if not {reason for reason, _, _ in expected} & BEYOND
        and not any(part in text for part in READ_BEFORE)
    ]


@pytest.mark.parametrize("text", within(WHOLE) + within(NODES, HEAD), ids=lambda text: text[-60:].strip())
def test_bad_recipes_are_invalid(text):
    assert not RECIPE.is_valid(seen(text))


def test_the_tables_leave_enough_to_see():
    assert len(within(WHOLE)) > 15 and len(within(NODES)) > 40


def test_good_workspace_is_valid():
    assert [error.message for error in WORKSPACE.iter_errors(seen(FULL_WORKSPACE))] == []


@pytest.mark.parametrize(
    "text", [row[0] for row in BAD_WORKSPACES if row[1] not in {"duplicate-key", *BEYOND}]
)
def test_bad_workspaces_are_invalid(text):
    assert not WORKSPACE.is_valid(seen(text))


def test_descriptions_and_defaults_reach_the_editor():
    count = recipe_schema(KINDS)["$defs"]["kind-layer"]["properties"]["count"]
    assert (count["description"], count["default"]) == ("How many.", 1)
