"""Colour where a person looks, none where `NO_COLOR` is set or the output is not a terminal.

See <https://no-color.org>; `FORCE_COLOR` asks for colour in logs that render it.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO


class Style:
    """ANSI styles, or plain text."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text

    def bold(self, text: str) -> str:
        """For places and headings."""
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        """For what may be passed over."""
        return self._wrap("2", text)

    def red(self, text: str) -> str:
        """For failures."""
        return self._wrap("31", text)

    def green(self, text: str) -> str:
        """For what is done."""
        return self._wrap("32", text)

    def yellow(self, text: str) -> str:
        """For what will run."""
        return self._wrap("33", text)

    def cyan(self, text: str) -> str:
        """For hints and names."""
        return self._wrap("36", text)


def wanted(stream: TextIO) -> bool:
    """Whether colour is wanted on this stream."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


err = Style(wanted(sys.stderr))
"""For reports."""

out = Style(wanted(sys.stdout))
"""For results."""
