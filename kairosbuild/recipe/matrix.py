"""`matrix`: one recipe, many cells, one graph. And `when`: a node that is only there in some of them.

    matrix:
      release: [bookworm, trixie]
      kernel:
        cloud:   {package: linux-image-cloud-amd64}
        generic: {package: linux-image-amd64}
      exclude: [{release: bookworm, kernel: cloud}]

An axis is a variable that has several values, used as any other: `${release}`. A value may bring more
variables along (`package`). A node depends on an axis when it uses such a variable, when its `when` asks
for it, or when a node it names does; it exists once for each combination of the axes it depends on, as
`NODE@VALUE,VALUE`, and a node that depends on none exists once, under its own name. The axis `arch` is the platform's,
on which every node depends.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kairosbuild.core.errors import InputError, KbuildError, nearest
from kairosbuild.recipe.located import Fields, Items, Located, Text, describe
from kairosbuild.recipe.variables import NAME, names_in

EXCLUDE = "exclude"
VALUE = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
MOST_CELLS = 1000
ARCH = "arch"
"""The axis that says what a cell runs on, in place of the recipe's `platform`; and what a condition asks for."""
ARCHITECTURES = ("amd64", "arm64")
DESCRIBED = ("distribution", "release")
"""Variables that a condition may ask for, beside the architecture and the axes."""

MATRIX = (
    "Axes: name → list of values, or value → variables it brings; `exclude` lists combinations to leave out."
)
WHEN = (
    "The node is there only when each of these has one of the values listed: "
    "`arch`, the variables `distribution` and `release`, the axes of the matrix."
)

Cell = Mapping[str, str]
"""A value for each of some axes."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its values in the order written, and the variables that each brings along."""

    name: str
    key: Text
    values: Mapping[str, Mapping[str, Text]]

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that differs along this axis."""
        return frozenset((self.name, *itertools.chain.from_iterable(self.values.values())))


@dataclass(frozen=True)
class Matrix:
    """The axes, and the cells that are left. Without any axis there is one cell, the empty one."""

    axes: tuple[Axis, ...] = ()
    cells: tuple[Cell, ...] = field(default_factory=lambda: ({},))

    @property
    def names(self) -> frozenset[str]:
        """The names of the axes."""
        return frozenset(axis.name for axis in self.axes)

    def everything(self) -> dict[str, Text]:
        """Every variable that an axis sets, at one of its places."""
        found = {axis.name: axis.key for axis in self.axes}
        for axis in self.axes:
            for more in axis.values.values():
                found.update(more)
        return found

    def declared(self, cell: Cell) -> dict[str, Text]:
        """The variables that the axes set in this cell, which may be one of some axes only."""
        found: dict[str, Text] = {}
        for axis in self.axes:
            if axis.name in cell:
                at = axis.key
                value = cell[axis.name]
                found[axis.name] = Text(at.file, at.line, at.column, value, True)
                found.update(axis.values[value])
        return found

    def varying(self, given: Collection[str] = ()) -> dict[str, str]:
        """Each variable that an axis sets, and the axis; what `--set` gives is the same in all cells."""
        return {
            variable: axis.name
            for axis in self.axes
            for variable in axis.variables
            if variable in self.names or variable not in given
        }

    def projected(self, axes: Collection[str]) -> list[Cell]:
        """The combinations of these axes' values that some cell has, each once, in order."""
        kept = [axis.name for axis in self.axes if axis.name in axes]
        rows = dict.fromkeys(tuple(cell[name] for name in kept) for cell in self.cells)
        return [dict(zip(kept, row, strict=True)) for row in rows]


def platform_of(cell: Cell) -> str:
    """What a node in this cell is for; "" where that is the recipe's own platform."""
    return f"linux/{cell[ARCH]}" if ARCH in cell else ""


def suffixed(name: str, cell: Cell) -> str:
    """The name of a node in a cell of the axes that it depends on."""
    return f"{name}@{','.join(cell.values())}" if cell else name


def restricted(cell: Cell, axes: Collection[str]) -> Cell:
    """The cell in these axes only."""
    return {name: value for name, value in cell.items() if name in axes}


def read(node: Located | None, given: Mapping[str, str], problems: list[KbuildError]) -> Matrix:
    """The matrix of a recipe; an axis that `--set` gives keeps that value only."""
    if node is None:
        return Matrix()
    if not isinstance(node, Fields):
        problems.append(_error(f"matrix: a mapping is expected, not {describe(node)}", "wrong-type", node))
        return Matrix()
    before = len(problems)
    axes = tuple(
        _axis(node.keys[name], value, problems) for name, value in node.fields.items() if name != EXCLUDE
    )
    _check_variables(axes, problems)
    excluded = _excluded(node.fields.get(EXCLUDE), axes, problems)
    chosen = [_chosen(axis, given, problems) for axis in axes]
    if len(problems) > before:
        return Matrix(axes, ())
    count = 1
    for values in chosen:
        count *= len(values)
    if count > MOST_CELLS:
        problems.append(_error(f"matrix: {count} cells", "matrix-limit", node, f"at most {MOST_CELLS}"))
        return Matrix(axes, ())
    names = [axis.name for axis in axes]
    cells = [dict(zip(names, row, strict=True)) for row in itertools.product(*chosen)]
    left = tuple(cell for cell in cells if not any(_matches(cell, one) for one in excluded))
    if not left:
        problems.append(_error("matrix: no cell is left", "matrix-empty", node, "exclude takes them all"))
    return Matrix(axes, left)


def _axis(key: Text, node: Located, problems: list[KbuildError]) -> Axis:
    name, before = key.value, len(problems)
    if not re.fullmatch(NAME, name):
        hint = "letters, digits, - and _, not a digit first"
        problems.append(_error(f"{name!r} cannot name an axis", "bad-name", key, hint))
    found: dict[str, Mapping[str, Text]] = {}
    for at, value, more in _values(name, node, problems):
        if not re.fullmatch(VALUE, value):
            hint = "it becomes part of names and tags: letters, digits, then also _ . -"
            problems.append(_error(f"matrix.{name}: {value!r} cannot be a value", "bad-value", at, hint))
        elif name == ARCH and value not in ARCHITECTURES:
            hint = nearest(value, ARCHITECTURES)
            problems.append(_error(f"matrix.arch: {value!r} is no architecture", "bad-value", at, hint))
        elif value in found:
            problems.append(_error(f"matrix.{name}: {value!r} stands twice", "duplicate-value", at))
        else:
            found[value] = more
    if not found and len(problems) == before:
        problems.append(_error(f"matrix.{name}: no value", "too-few", node, "at least one"))
    return Axis(name, key, found)


def _values(
    name: str, node: Located, problems: list[KbuildError]
) -> Iterable[tuple[Located, str, Mapping[str, Text]]]:
    if isinstance(node, Items):
        for item in node.items:
            if isinstance(item, Text) and not item.null:
                yield item, item.value, {}
            else:
                message = f"matrix.{name}: a value is expected, not {describe(item)}"
                problems.append(_error(message, "wrong-type", item))
    elif isinstance(node, Fields):
        for value, brought in node.fields.items():
            yield node.keys[value], value, _brought(f"matrix.{name}.{value}", brought, problems)
    else:
        hint = f"write [{node.value}]" if isinstance(node, Text) and not node.null else ""
        message = f"matrix.{name}: a list or a mapping is expected, not {describe(node)}"
        problems.append(_error(message, "wrong-type", node, hint))


def _brought(label: str, node: Located, problems: list[KbuildError]) -> dict[str, Text]:
    if not isinstance(node, Fields):
        problems.append(_error(f"{label}: a mapping is expected, not {describe(node)}", "wrong-type", node))
        return {}
    found = {}
    for name, value in node.fields.items():
        if not re.fullmatch(NAME, name):
            problems.append(_error(f"{name!r} cannot name a variable", "bad-name", node.keys[name]))
        elif not isinstance(value, Text) or value.null:
            message = f"{label}.{name}: text is expected, not {describe(value)}"
            problems.append(_error(message, "wrong-type", value))
        else:
            found[name] = value
    return found


def _check_variables(axes: Sequence[Axis], problems: list[KbuildError]) -> None:
    """Each variable is of one axis, and every value of the axis brings it."""
    owners: dict[str, Axis] = {}
    for axis in axes:
        for variable in sorted(axis.variables):
            if variable in owners:
                message = f"{variable!r} differs along {owners[variable].name} and along {axis.name}"
                problems.append(_error(message, "matrix-variable", axis.key, "one axis sets a variable"))
            owners[variable] = axis
        brought = {name for more in axis.values.values() for name in more}
        for value, more in axis.values.items():
            if lacking := sorted(brought - set(more)):
                message = f"matrix.{axis.name}.{value} lacks {', '.join(lacking)}, which its siblings bring"
                problems.append(_error(message, "matrix-variable", axis.key))


def _excluded(
    node: Located | None, axes: Sequence[Axis], problems: list[KbuildError]
) -> list[dict[str, tuple[str, ...]]]:
    if node is None:
        return []
    if not isinstance(node, Items):
        message = f"matrix.exclude: a list is expected, not {describe(node)}"
        problems.append(_error(message, "wrong-type", node, "write [{AXIS: VALUE, …}]"))
        return []
    known = {axis.name: tuple(axis.values) for axis in axes}
    return [conditions("matrix.exclude", item, known, problems) for item in node.items]


def _chosen(axis: Axis, given: Mapping[str, str], problems: list[KbuildError]) -> list[str]:
    if axis.name not in given:
        return list(axis.values)
    value = given[axis.name]
    if value not in axis.values:
        message = f"--set {axis.name}={value}: the axis has no such value"
        problems.append(_error(message, "matrix-value", axis.key, nearest(value, axis.values)))
        return []
    return [value]


def conditions(
    label: str, node: Located, known: Mapping[str, tuple[str, ...]], problems: list[KbuildError]
) -> dict[str, tuple[str, ...]]:
    """What a mapping asks for: name → values, any of which will do. `known` values () means any text."""
    if not isinstance(node, Fields):
        problems.append(_error(f"{label}: a mapping is expected, not {describe(node)}", "wrong-type", node))
        return {}
    found = {}
    for name, value in node.fields.items():
        if name not in known:
            message = f"{label}: {name!r} is nothing to ask for"
            problems.append(_error(message, "unknown-condition", node.keys[name], nearest(name, known)))
            continue
        found[name] = tuple(_asked(f"{label}.{name}", value, known[name], problems))
    return found


def _asked(label: str, node: Located, known: tuple[str, ...], problems: list[KbuildError]) -> Iterable[str]:
    for item in node.items if isinstance(node, Items) else [node]:
        if not isinstance(item, Text) or item.null or "$" in item.value:
            message = f"{label}: a value is expected, not {describe(item)}"
            problems.append(_error(message, "wrong-type", item))
        elif known and item.value not in known:
            message = f"{label}: {item.value!r} is not one of its values"
            problems.append(_error(message, "bad-choice", item, nearest(item.value, known)))
        else:
            yield item.value


def _matches(cell: Cell, asked: Mapping[str, tuple[str, ...]]) -> bool:
    return all(cell[name] in values for name, values in asked.items())


class Dependence:
    """Which axes a text depends on, by way of variables within variables."""

    def __init__(self, matrix: Matrix, declared: Mapping[str, Text], given: Mapping[str, str]) -> None:
        self._axis_of = matrix.varying(given)
        texts: dict[str, list[Text]] = {name: [text] for name, text in declared.items() if name not in given}
        for axis in matrix.axes:
            for more in axis.values.values():
                for name, text in more.items():
                    texts.setdefault(name, []).append(text)
        self._uses = {name: set().union(*map(names_in, found)) for name, found in texts.items()}

    def variables(self, names: Iterable[str]) -> set[str]:
        """These variables and those behind them."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self._uses.get(name, ())
        return seen

    def of_variables(self, names: Iterable[str]) -> set[str]:
        """The axes behind these variables."""
        return {self._axis_of[name] for name in self.variables(names) if name in self._axis_of}

    def varying(self, names: Iterable[str], cell: Cell | None = None) -> set[str]:
        """Those of these variables that differ between cells, though the axes of `cell` be fixed."""
        fixed = cell.keys() if cell else set()
        return {name for name in names if self._axis_of and not self.of_variables([name]) <= fixed}

    def of(self, node: Located) -> set[str]:
        """The axes behind the texts of a value."""
        return self.of_variables(names_in(node))


def _error(message: str, reason: str, at: Located, hint: str = "") -> InputError:
    return InputError(message, reason=reason, hint=hint, origin=at.origin)
