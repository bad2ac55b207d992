"""Errors that say where, what is wrong, and what would be right.

Every failure a person can meet is a `KbuildError`. Programs (and tests) look at `reason`, a stable
word; people read the message and the hint. Only the command line turns one into an exit code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_LISTED = 60  # words that a person still reads through


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """A place in a text file; line and column count from 1, as editors do."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class KbuildError(Exception):
    """A failure with a machine reason and a human hint.

    `reason` is a kebab-case word that never changes once published; `hint` says what would be right.
    """

    exit_code = 1

    def __init__(self, message: str, *, reason: str, hint: str = "", origin: Origin | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint
        self.origin = origin

    def __str__(self) -> str:
        place = f"{self.origin}: " if self.origin else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"


class NodeError(KbuildError):
    """A node could not be built (exit code 1)."""


class InputError(KbuildError):
    """What the user wrote is wrong (exit code 2)."""

    exit_code = 2


class HostError(KbuildError):
    """The environment is wrong: a registry, a mirror, a missing tool, a full disk (exit code 3)."""

    exit_code = 3


class Problems(InputError):
    """Every problem of one input at once, in the order of their places."""

    def __init__(self, problems: Sequence[KbuildError]) -> None:
        self.problems = tuple(sorted(problems, key=_place))
        super().__init__("\n".join(map(str, self.problems)), reason=self.problems[0].reason)


def raise_problems(problems: Sequence[KbuildError]) -> None:
    """Raise nothing for none, the one for one, `Problems` for more."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or lists them all when none is close and they are few."""
    names = sorted(known)
    import difflib  # wanted by mistakes only

    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(names) > MOST_LISTED:
        return f"none of the {len(names)} that there are is called like that"
    return "known: " + ", ".join(names) if names else ""


def _place(problem: KbuildError) -> tuple[str, int, int]:
    origin = problem.origin
    return (origin.file, origin.line, origin.column) if origin else ("", 0, 0)
