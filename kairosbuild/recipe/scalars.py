"""Single values: text as written to text, number, flag, digest, mode, size or duration."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from kairosbuild.core.digest import is_digest
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.recipe.fields import FieldInfo
from kairosbuild.recipe.located import Located

INTEGER = r"-?(?:0|[1-9][0-9]{0,17})"
SIZE = r"(0|[1-9][0-9]{0,14})([KMGT]?)"
DURATION = r"(0|[1-9][0-9]{0,8})([smh]?)"
MODE = r"0?[0-7]{3,4}"
DIGEST = r"(?:sha256:)?[0-9a-f]{64}"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class Word(NamedTuple):
    """Text after variables; `plain` when quotes did not ask for it to be text and nothing else."""

    text: str
    plain: bool


def text(info: FieldInfo, word: Word, at: Located) -> str:
    """Text, held against the field's pattern and choices; `least` and `most` count characters."""
    if len(word.text) < info.least:
        raise _error("too short", "too-few", at, f"at least {info.least} characters")
    if info.most is not None and len(word.text) > info.most:
        raise _error("too long", "too-many", at, f"at most {info.most} characters")
    return item(info, word, at)


def item(info: FieldInfo, word: Word, at: Located) -> str:
    """One text of a list or mapping: pattern and choices hold for it, `least` for the whole."""
    if info.choices and word.text not in info.choices:
        hint = nearest(word.text, info.choices)
        raise _error(f"{_show(word)} is not one of its words", "bad-choice", at, hint)
    if info.pattern and not re.fullmatch(info.pattern, word.text):
        hint = f"for example {info.example}" if info.example else f"it must match {info.pattern}"
        raise _error(f"{_show(word)} has not the right form", "bad-value", at, hint)
    return word.text


def integer(info: FieldInfo, word: Word, at: Located) -> int:
    """A whole number within the field's bounds."""
    if not word.plain or not re.fullmatch(INTEGER, word.text):
        hint = "without quotes" if re.fullmatch(INTEGER, word.text) else ""
        raise _error(f"a whole number is expected, not {_show(word)}", "wrong-type", at, hint)
    return _bounded(info, int(word.text), at)


def flag(info: FieldInfo, word: Word, at: Located) -> bool:
    """`true` or `false`, which YAML 1.2 leaves as the only two."""
    if not word.plain or word.text not in ("true", "false"):
        hint = "without quotes" if word.text in ("true", "false") else ""
        raise _error(f"true or false is expected, not {_show(word)}", "wrong-type", at, hint)
    return word.text == "true"


def digest(info: FieldInfo, word: Word, at: Located) -> str:
    """A sha256 digest, with its algorithm in front."""
    found = word.text if ":" in word.text else "sha256:" + word.text
    if not is_digest(found):
        raise _error(f"{_show(word)} is no sha256 digest", "bad-digest", at, "64 hex digits in lower case")
    return found


def mode(info: FieldInfo, word: Word, at: Located) -> str:
    """A file mode as four octal digits."""
    if not re.fullmatch(MODE, word.text):
        raise _error(f"{_show(word)} is no file mode", "bad-mode", at, "octal digits, as 0644")
    return f"{int(word.text, 8):04o}"


def size(info: FieldInfo, word: Word, at: Located) -> int:
    """A number of bytes."""
    match = re.fullmatch(SIZE, word.text)
    if not match:
        raise _error(f"{_show(word)} is no size", "bad-size", at, "a number, with K, M, G or T: 512M")
    return _bounded(info, int(match[1]) * _UNITS[match[2]], at)


def duration(info: FieldInfo, word: Word, at: Located) -> int:
    """A number of seconds."""
    match = re.fullmatch(DURATION, word.text)
    if not match:
        raise _error(f"{_show(word)} is no time", "bad-duration", at, "a number, with s, m or h: 10m")
    return _bounded(info, int(match[1]) * _SECONDS[match[2]], at)


def _bounded(info: FieldInfo, value: int, at: Located) -> int:
    if value < info.least:
        raise _error(f"{value} is too small", "out-of-range", at, f"at least {info.least}")
    if info.most is not None and value > info.most:
        raise _error(f"{value} is too large", "out-of-range", at, f"at most {info.most}")
    return value


def _show(word: Word) -> str:
    return repr(word.text if len(word.text) <= 60 else word.text[:57] + "…")


def _error(message: str, reason: str, at: Located, hint: str) -> InputError:
    return InputError(message, reason=reason, hint=hint, origin=at.origin)


READ: dict[str, Callable[[FieldInfo, Word, Located], Any]] = {
    "text": text,
    "choice": text,
    "integer": integer,
    "flag": flag,
    "digest": digest,
    "mode": mode,
    "size": size,
    "duration": duration,
}
