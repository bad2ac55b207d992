"""`kbuild show`: a recipe as it is understood, and where each value came from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.style import out
from kairosbuild.core.errors import Origin
from kairosbuild.execute.selection import chosen

if TYPE_CHECKING:
    from kairosbuild.recipe.show import Shown, ShownNode, Value

_WIDTH = 60


def main(arguments: argparse.Namespace) -> int:
    """Print it as YAML with the source of each value behind it; `--json` for programs."""
    from kairosbuild.kinds.table import TABLE
    from kairosbuild.recipe.load import loading
    from kairosbuild.recipe.show import shown

    place = given.workspace(arguments.recipe)
    set_vars = given.pairs(arguments.set, "--set")
    found = shown(loading(Path(arguments.recipe), TABLE, workspace=place, set_vars=set_vars))
    names = chosen(arguments.nodes, [node.name for node in found.nodes])
    nodes = [node for node in found.nodes if not names or node.name in names]
    if arguments.json:
        given.print_json(_document(found, nodes))
    else:
        print(
            "\n".join(
                [
                    *(() if names else _head(found)),
                    "nodes:",
                    *(line for node in nodes for line in _node(node)),
                ]
            )
        )
    return 0


def _head(found: Shown) -> Iterator[str]:
    yield from (_line("", value) for value in found.top)
    if found.variables:
        yield "vars:"
        yield from (_line("  ", value) for value in found.variables)


def _node(node: ShownNode) -> Iterator[str]:
    if node.absent:
        yield _noted(f"  # {node.name} is left out", f"when: {node.absent}")
        return
    yield _noted(f"  {node.name}:", str(node.at))
    yield f"    kind: {node.kind}"
    yield from (_line("    ", value) for value in node.fields)


def _line(indent: str, value: Value) -> str:
    return _noted(f"{indent}{value.path}: {_yaml(value.value)}", value.source)


def _noted(text: str, note: str) -> str:
    return f"{text:{_WIDTH}} {out.dim(f'# {note}')}"


def _yaml(value: Any) -> str:
    """Flow YAML; what a plain word cannot say is quoted, as JSON is."""
    if isinstance(value, str) and value.replace("-", "a").replace("_", "a").replace(".", "a").isalnum():
        return value
    return json.dumps(value, ensure_ascii=False)


def _document(found: Shown, nodes: list[ShownNode]) -> Any:
    return {
        "recipe": [_value(value) for value in found.top],
        "vars": [_value(value) for value in found.variables],
        "nodes": [
            {
                "name": node.name,
                "kind": node.kind,
                "at": _origin(node.at),
                "absent": _origin(node.absent),
                "fields": [_value(value) for value in node.fields],
            }
            for node in nodes
        ],
    }


def _value(value: Value) -> Mapping[str, Any]:
    return {"path": value.path, "value": value.value, "at": _origin(value.at), "by": dict(value.by)}


def _origin(origin: Origin | None) -> Any:
    return {"file": origin.file, "line": origin.line, "column": origin.column} if origin else None
