"""What goes wrong on a machine, with a word for programs and a hint for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Problem(Exception):
    """A failure. `reason` is a kebab-case word that stays; `hint` says what would be right."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)
