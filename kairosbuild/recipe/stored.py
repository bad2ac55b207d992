"""Declarations and recipes as JSON, so that a recipe once read can be had again without YAML.

`recipe_json` writes one row for each node, because ten thousand of them are read at the start of
every run. A reader of a stored recipe trusts it as much as its own cache; the text's digest, the
`--set` variables and the kinds' specs have to be part of the name it is stored under.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kairosbuild.core.errors import Origin
from kairosbuild.recipe.declaration import Declaration, Publish, Recipe

FORMAT = 1


def declaration_json(declaration: Declaration) -> dict[str, Any]:
    """A declaration by field name."""
    place = declaration.origin
    return {
        "name": declaration.name,
        "kind": declaration.kind,
        "spec": declaration.spec,
        "refs": {role: list(names) for role, names in declaration.refs.items()},
        "sources": declaration.sources,
        "hints": declaration.hints,
        "origin": [place.file, place.line, place.column] if place else None,
    }


def declaration_from_json(value: Mapping[str, Any]) -> Declaration:
    """The declaration that `declaration_json` wrote."""
    place = value["origin"]
    refs = {role: tuple(names) for role, names in value["refs"].items()}
    return Declaration(
        value["name"],
        value["kind"],
        value["spec"],
        refs,
        value["sources"],
        value["hints"],
        Origin(*place) if place else None,
    )


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """A whole recipe. Its root is left out: where it lies is the reader's to say."""
    return {
        "format": FORMAT,
        "name": recipe.name,
        "vars": dict(recipe.vars),
        "nodes": [_row(node) for node in recipe.nodes],
        "publish": _publish_json(recipe.publish),
        "epoch": recipe.epoch,
        "platform": recipe.platform,
    }


def recipe_from_json(value: Mapping[str, Any], *, file: str, root: str) -> Recipe:
    """The recipe that `recipe_json` wrote, for this file in this workspace; it takes `value` over.

    Raises KeyError, TypeError or ValueError for what `recipe_json` never wrote.
    """
    if value["format"] != FORMAT:
        raise ValueError("a stored recipe of another format")
    return Recipe(
        name=value["name"],
        file=file,
        root=root,
        vars=value["vars"],
        nodes=tuple([_node(row, file) for row in value["nodes"]]),
        publish=_publish(value["publish"], file),
        epoch=value["epoch"],
        platform=value["platform"],
    )


def _row(node: Declaration) -> list[Any]:
    line, column = (node.origin.line, node.origin.column) if node.origin else (0, 0)
    return [node.name, node.kind, node.spec, node.refs, node.sources, node.hints, line, column]


def _node(row: list[Any], file: str) -> Declaration:
    name, kind, spec, refs, sources, hints, line, column = row
    for role, names in refs.items():
        refs[role] = tuple(names)
    return Declaration(name, kind, spec, refs, sources, hints, Origin(file, line, column) if line else None)


def _publish_json(publish: Publish) -> dict[str, Any]:
    place = publish.origin
    return {
        "targets": list(publish.targets),
        "to": publish.to,
        "tags": list(publish.tags),
        "requires": list(publish.requires),
        "origin": [place.line, place.column] if place else None,
    }


def _publish(value: Mapping[str, Any], file: str) -> Publish:
    place = value["origin"]
    return Publish(
        tuple(value["targets"]),
        value["to"],
        tuple(value["tags"]),
        tuple(value["requires"]),
        Origin(file, *place) if place else None,
    )
