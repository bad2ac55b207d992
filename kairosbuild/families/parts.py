"""A large set of packages in parts, which are installed one upon the other: what an edit of the set leaves alone is kept.

A part is what some packages asked for need and no part before has, in the order of the recipe. Where the set is cut
depends on that order alone, so a change redoes the part that has it and those behind it, and a build from nothing
makes the same layers. A small set is one part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from kairosbuild.graph.node import Locked

CUTS = (20, 40, 60, 80, 100, 150, 200, 300, 400, 600, 800)
"""Behind how many packages asked for a part ends: a machine mounts each as a layer, so they are few."""


def cut(
    asked: Sequence[str],
    chosen: Collection[str],
    needs: Callable[[str], Iterable[str]],
    first: Iterable[str] = (),
) -> list[list[str]]:
    """The names of the chosen packages by part, sorted; each part needs only itself and those before.

    `needs` gives what a name may stand for or need; what is not chosen does not matter. `first` has to be in the first
    part, and what nobody asked for or needs is as well.
    """
    bounds = [0, *(bound for bound in CUTS if bound < len(asked)), len(asked)]
    stray = set(chosen) - _closed([*first, *asked], chosen, needs, set())
    head = [*first, *stray, *asked[: bounds[1]]]
    taken: set[str] = set()
    parts = [
        _closed(group, chosen, needs, taken)
        for group in (head, *(asked[start:end] for start, end in pairwise(bounds[1:])))
    ]
    return [sorted(part) for part in parts if part]


def parts_of(locked: Locked) -> list[Locked]:
    """What was locked, by part: each has its rows of `packages`, its materials and of `asked` its names."""
    names = locked.data.get("parts", ())
    if len(names) < 2:
        return [locked]
    return [_part(locked, frozenset(part), number == 0) for number, part in enumerate(names)]


def _closed(
    names: Iterable[str], chosen: Collection[str], needs: Callable[[str], Iterable[str]], taken: set[str]
) -> set[str]:
    """These and what they need, less what is taken; taken from now on."""
    found: set[str] = set()
    seen: set[str] = set()
    todo = list(names)
    while todo:
        if (name := todo.pop()) in seen or name in taken:
            continue
        seen.add(name)
        todo += needs(name)
        if name in chosen:
            found.add(name)
    taken |= found
    return found


def _part(locked: Locked, names: frozenset[str], first: bool) -> Locked:
    pairs = zip(locked.data["packages"], locked.materials, strict=True)
    kept = [(row, material) for row, material in pairs if row["name"] in names]
    data = {
        **locked.data,
        "packages": [row for row, _ in kept],
        "removed": locked.data["removed"] if first else [],
    }
    if "asked" in data:
        data["asked"] = [name for name in data["asked"] if name in names]
    return replace(locked, data=data, materials=tuple(material for _, material in kept))
