"""Variables: `${name}` inside a value is replaced, `$$` is a dollar sign, and that is all.

Names of nodes, fields and labels are never touched, so the shape of a recipe does not depend on
variables. A lone `$` stays (`$HOME` in a command is the shell's); `${` that opens no name is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from kairosbuild.core.errors import InputError, KbuildError, Origin, nearest
from kairosbuild.recipe.located import Fields, Items, Located, Text, describe

NAME = "[A-Za-z_][A-Za-z0-9_-]*"
MOST_TEXT = 1 << 20  # characters of one value after replacement
MOST_TOTAL = 64 << 20  # characters of all replaced values together
MOST_CHAIN = 64  # variables within variables

MOST_HINTS = 50  # finding the nearest of many names is slow, and nobody reads more

_DOLLAR = re.compile(r"\$(?:(\$)|\{(" + NAME + r")\}|(\{))")


class Broken(InputError):
    """A variable was used whose own problem has been noted."""


class Variables:
    """The declared variables of a recipe; `given` (from `--set`) wins over what is declared.

    `varying` ones differ between the cells of a matrix: where something is said for all cells, they are errors.
    """

    def __init__(
        self,
        declared: Mapping[str, Text],
        given: Mapping[str, str],
        varying: Collection[str] = frozenset(),
    ) -> None:
        self._declared = {name: text for name, text in declared.items() if name not in varying}
        self._varying = varying
        self._values = {name: value for name, value in given.items() if name in self._declared}
        self._missed = 0
        self._open: list[str] = []
        self._broken: set[str] = set()
        self._total = 0

    def declared(self, name: str) -> Text | None:
        """Where a variable is declared."""
        return self._declared.get(name)

    def value(self, name: str, asked: Text) -> str:
        """What this variable stands for. Raises InputError at `asked`."""
        if name in self._values:
            return self._values[name]
        if name in self._broken:
            raise Broken(f"the variable {name!r} is wrong", reason="undefined-variable", origin=asked.origin)
        if name in self._varying:
            message = f"{name!r} differs between the cells of the matrix, and this is said for all of them"
            raise _error(message, "matrix-variable", asked, "use it in nodes")
        if name not in self._declared:
            raise self._undeclared(name, asked)
        if name in self._open:
            path = " → ".join([*self._open[self._open.index(name) :], name])
            raise _error(f"variables that need each other: {path}", "variable-cycle", asked, "")
        if len(self._open) >= MOST_CHAIN:
            raise _error(
                "variables within variables too deeply", "variable-limit", asked, f"at most {MOST_CHAIN}"
            )
        self._open.append(name)
        try:
            found = self.expand(self._declared[name])
        finally:
            self._open.pop()
        self._values[name] = found
        return found

    def expand(self, text: Text) -> str:
        """The text with every variable replaced. Raises InputError at the text's place."""
        if "$" not in text.value:
            return text.value
        parts, last, length = [], 0, 0
        for match in _DOLLAR.finditer(text.value):
            parts += [text.value[last : match.start()], self._replacement(match, text)]
            length += len(parts[-1]) + len(parts[-2])
            last = match.end()
            if length > MOST_TEXT:
                break
        parts.append(text.value[last:])
        self._count(length + len(parts[-1]), text)
        return "".join(parts)

    def all(self, problems: list[KbuildError]) -> dict[str, str]:
        """Every variable's value; what cannot be worked out goes to `problems`, once."""
        told: set[Origin | None] = set()
        for name, text in self._declared.items():
            try:
                self.value(name, text)
            except InputError as error:
                self._broken.add(name)
                if not isinstance(error, Broken) and error.origin not in told:
                    problems.append(error)
                    told.add(error.origin)
        return dict(self._values)

    def _undeclared(self, name: str, asked: Text) -> InputError:
        self._missed += 1
        hint = nearest(name, self._declared) if self._missed <= MOST_HINTS else ""
        message = f"no variable {name!r} is declared"
        return _error(message, "undefined-variable", asked, hint or "declare it under vars")

    def _replacement(self, match: re.Match[str], text: Text) -> str:
        dollar, name, brace = match.groups()
        if brace:
            raise _error(
                "'${' opens no variable here",
                "bad-variable",
                text,
                "write ${name}, or $${ for the characters themselves",
            )
        return "$" if dollar else self.value(name, text)

    def _count(self, length: int, text: Text) -> None:
        self._total += length
        if length > MOST_TEXT or self._total > MOST_TOTAL:
            raise _error(
                "variables make this text too long", "variable-limit", text, f"at most {MOST_TEXT} characters"
            )


def names_in(node: Located) -> set[str]:
    """Every variable that the texts of this value use themselves."""
    found: set[str] = set()
    todo = [node]
    while todo:
        one = todo.pop()
        if isinstance(one, Text):
            if "$" in one.value:
                found.update(match[2] for match in _DOLLAR.finditer(one.value) if match[2])
        elif isinstance(one, Fields):
            todo += one.fields.values()
        elif isinstance(one, Items):
            todo += one.items
    return found


def declared(node: Located | None, problems: list[KbuildError]) -> dict[str, Text]:
    """The variables of a `vars` mapping, as located text."""
    if node is None:
        return {}
    if not isinstance(node, Fields):
        problems.append(_error(f"vars: a mapping is expected, not {describe(node)}", "wrong-type", node, ""))
        return {}
    found = {}
    for name, value in node.fields.items():
        if not re.fullmatch(NAME, name):
            problems.append(
                _error(
                    f"{name!r} cannot name a variable",
                    "bad-name",
                    node.keys[name],
                    "letters, digits, - and _, not a digit first",
                )
            )
        elif not isinstance(value, Text) or value.null:
            hint = 'write "" for empty text' if isinstance(value, Text) else ""
            message = f"vars.{name}: text is expected, not {describe(value)}"
            problems.append(_error(message, "wrong-type", value, hint))
        else:
            found[name] = value
    return found


def undeclared(given: Mapping[str, str], known: Mapping[str, Text], file: str) -> list[KbuildError]:
    """A problem for each `--set` that no variable waits for."""
    return [
        InputError(
            f"--set {name}: the recipe declares no such variable",
            reason="undefined-variable",
            hint=nearest(name, known) or "declare it under vars",
            origin=Origin(file, 1, 1),
        )
        for name in sorted(given)
        if name not in known
    ]


def _error(message: str, reason: str, at: Located, hint: str) -> InputError:
    return InputError(message, reason=reason, hint=hint, origin=at.origin)
