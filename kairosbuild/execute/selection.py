"""Which nodes a person means. `disk` is the node, or all its cells of a matrix; `disk@trixie` those of one value."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kairosbuild.core.errors import InputError, nearest


def bare(name: str) -> str:
    """A node's name without its cell."""
    return name.partition("@")[0]


def chosen(asked: Iterable[str], names: Collection[str]) -> list[str]:
    """The nodes that these words mean, each once. Raises InputError (`unknown-node`)."""
    found: dict[str, None] = {}
    for word in asked:
        if word in names:
            found[word] = None
        else:
            found.update(dict.fromkeys(_cells(word, names)))
    return list(found)


def only(word: str, names: Collection[str]) -> str:
    """The one node that this word means. Raises InputError (`unknown-node`, `which-cell`)."""
    found = chosen([word], names)
    if len(found) > 1:
        message = f"{word!r} is {len(found)} nodes"
        raise InputError(message, reason="which-cell", hint="name one: " + ", ".join(found))
    return found[0]


def output_of(word: str, names: Collection[str]) -> tuple[str, str]:
    """The node of `NODE` or `NODE.OUTPUT`, and the output ("" for the main one). Raises as `only` does."""
    for name, _, output in ((word, "", ""), word.rpartition(".")):
        if found := [each for each in names if name in (each, bare(each))]:
            return only(name, found), output
    hint = nearest(word, {*names, *map(bare, names)})
    raise InputError(f"no node {word!r} is among what is built", reason="unknown-node", hint=hint)


def _cells(word: str, names: Collection[str]) -> list[str]:
    name, _, values = word.partition("@")
    wanted = set(values.split(",")) if values else set()
    found = [
        each
        for each in names
        if each.startswith(f"{name}@") and wanted <= set(each.partition("@")[2].split(","))
    ]
    if not found:
        known = {*names, *map(bare, names)}
        raise InputError(f"no node {word!r}", reason="unknown-node", hint=nearest(word, known))
    return found
