"""`kbuild schema`: the JSON Schema for editors, and the field reference."""

from __future__ import annotations

import argparse
import json

from kairosbuild.kinds.table import TABLE


def main(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    print(text(arguments.of), end="")
    return 0


def text(of: str) -> str:
    """A schema as JSON, or the reference as Markdown; ends with a newline."""
    from kairosbuild.recipe import schema
    from kairosbuild.recipe.reference import reference

    if of == "reference":
        return reference(TABLE)
    makers = {
        "recipe": lambda: schema.recipe_schema(TABLE),
        "workspace": schema.workspace_schema,
        "settings": schema.user_schema,
    }
    return json.dumps(makers[of](), indent=2, ensure_ascii=False) + "\n"
