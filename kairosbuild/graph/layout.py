"""Where things stand in a drawing: columns by longest path, rows by the average of the neighbours.

The method is Sugiyama's in its simplest form: an edge over several columns runs through a place of
its own in each, so that lines go around boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kairosbuild.graph.dag import Edges, layers

HEIGHT, ROW, GAP, MARGIN = 44, 62, 64, 20  # pixels: of a box, between rows, between columns, around
_WIDTH, _LETTER = 34, 7.6  # pixels: of a box without text, of a letter
_ROUNDS = 12

Point = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes as (x, y, width) by name, and edges as points from box to box. All in pixels."""

    width: int
    height: int
    boxes: Mapping[str, tuple[int, int, int]]
    routes: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """A node, or where an edge passes a column: then `name` is of no node."""

    name: str
    column: int


def arrange(edges: Edges, kinds: Mapping[str, str]) -> Layout:
    """A layout that depends on the graph and the order of its nodes alone."""
    columns = [[_Place(name, at) for name in names] for at, names in enumerate(_columns(edges))]
    at = {place.name: place for column in columns for place in column}
    chains = [_chain(at[need], at[name], columns) for name, needs in edges.items() for need in needs]
    rows = _rows(columns, chains)
    wide = {name: _text_width(name, kinds) for name in edges}
    widths = [max((wide[p.name] for p in column if p.name in edges), default=0) for column in columns]
    lefts = [MARGIN + sum(widths[:i]) + GAP * i for i in range(len(columns))]
    boxes = {name: (lefts[at[name].column], rows[at[name]], wide[name]) for name in edges}
    routes = tuple(_route(chain, rows, lefts, widths, boxes) for chain in chains)
    height = max((y for _, y, _ in boxes.values()), default=0) + HEIGHT + MARGIN
    return Layout(sum(widths) + GAP * max(0, len(columns) - 1) + 2 * MARGIN, height, boxes, routes)


def _columns(edges: Edges) -> list[list[str]]:
    order = {name: i for i, name in enumerate(edges)}
    return [sorted(names, key=order.__getitem__) for names in layers(edges)]


def _chain(start: _Place, end: _Place, columns: list[list[_Place]]) -> list[_Place]:
    """The places an edge goes through; those in between are made here."""
    chain = [start]
    for column in range(start.column + 1, end.column):
        passing = _Place(f"\0{start.name}\0{end.name}", column)
        columns[column].append(passing)
        chain.append(passing)
    return [*chain, end]


def _rows(columns: list[list[_Place]], chains: Sequence[Sequence[_Place]]) -> dict[_Place, int]:
    """The top of every place, in pixels."""
    before: dict[_Place, list[_Place]] = {place: [] for column in columns for place in column}
    after: dict[_Place, list[_Place]] = {place: [] for place in before}
    for chain in chains:
        for one, other in pairwise(chain):
            after[one].append(other)
            before[other].append(one)
    y = {place: float(i) for column in columns for i, place in enumerate(column)}
    for number in range(_ROUNDS):
        forward = number % 2 == 0
        for column in columns if forward else reversed(columns):
            _align(column, before if forward else after, y)
    top = min(y.values(), default=0.0)
    return {place: MARGIN + round((row - top) * ROW) for place, row in y.items()}


def _align(
    column: list[_Place], neighbours: Mapping[_Place, Sequence[_Place]], y: dict[_Place, float]
) -> None:
    """Move a column's places to where their neighbours are, in their order, a row apart at least."""
    wish = {place: _average([y[n] for n in neighbours[place]] or [y[place]]) for place in column}
    column.sort(key=lambda place: wish[place])
    row = float("-inf")
    for place in column:
        row = max(wish[place], row + 1)
        y[place] = row
    shift = _average([wish[place] - y[place] for place in column])
    for place in column:
        y[place] += shift


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _route(
    chain: Sequence[_Place],
    rows: Mapping[_Place, int],
    lefts: Sequence[int],
    widths: Sequence[int],
    boxes: Mapping[str, tuple[int, int, int]],
) -> tuple[Point, ...]:
    x, y, width = boxes[chain[0].name]
    points = [(x + width, y + HEIGHT // 2)]
    for place in chain[1:-1]:
        middle = rows[place] + HEIGHT // 2
        points += [(lefts[place.column], middle), (lefts[place.column] + widths[place.column], middle)]
    x, y, _ = boxes[chain[-1].name]
    return (*points, (x, y + HEIGHT // 2))


def _text_width(name: str, kinds: Mapping[str, str]) -> int:
    return _WIDTH + round(_LETTER * max(len(name), len(kinds.get(name, "")) * 0.85))
