"""Which firmware files a machine needs: those that its modules ask for, and those named by hand."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kairosbuild.boot.modules import canonical
from kairosbuild.core.errors import InputError, nearest

FOLDER = "usr/lib/firmware"
_PACKED = ("", ".xz", ".zst")  # what the kernel's loader tries, in its order
_LINKS = 40


@dataclass(frozen=True, slots=True)
class Wish:
    """One thing asked for: a file (or glob) by name, or a module with what it says it loads."""

    word: str
    names: tuple[str, ...]
    module: bool


def is_file(word: str) -> bool:
    """Whether a word names a firmware file; else it names a module, whose names have no dot and no slash."""
    return bool({".", "/", "*"} & set(word))


def wishes(words: Iterable[str], modules: Mapping[str, Sequence[str]], kernel: str) -> list[Wish]:
    """What these words come to. `modules` says of each of the kernel's modules what it loads.

    Raises InputError: `firmware-module` for a module that the kernel does not have, or that loads nothing.
    """
    found = []
    for word in words:
        if is_file(word):
            found.append(Wish(word, (word,), False))
            continue
        name = canonical(word)
        if name not in modules:
            raise InputError(
                f"the kernel of {kernel!r} has no module {word!r} to find firmware for",
                reason="firmware-module",
                hint=nearest(name, modules) if len(name) > 1 else "",
            )
        if not modules[name]:
            raise InputError(
                f"the module {word!r} of {kernel!r} asks for no firmware",
                reason="firmware-module",
                hint="name the file itself, as brcm/brcmfmac43455-sdio.bin",
            )
        found.append(Wish(word, tuple(modules[name]), True))
    return found


def chosen(wish: Wish, have: Mapping[str, str]) -> list[str]:
    """The paths below the firmware folder that fulfil a wish, links and where they lead included.

    `have` maps each path to where it links to, "" for a file. Raises InputError (`firmware-missing`)
    when there is none at all: a module lists every generation it knows, so some are often missing.
    """
    found: dict[str, None] = {}
    for name in wish.names:
        for path in _matches(name, have):
            found |= dict.fromkeys(_followed(path, have))
    if not found:
        what = (
            f"any of the {len(wish.names)} files that {wish.word!r} asks for"
            if wish.module
            else repr(wish.word)
        )
        raise InputError(
            f"no package has the firmware {what}",
            reason="firmware-missing",
            hint=f"it asks for {wish.names[0]}" if wish.module else nearest(wish.word, have) if have else "",
        )
    return sorted(found)


def _matches(name: str, have: Mapping[str, str]) -> list[str]:
    names = [name + ending for ending in _PACKED]
    if "*" in name or "?" in name or "[" in name:
        return [path for path in have if any(fnmatchcase(path, one) for one in names)]
    return [one for one in names if one in have][:1]


def _followed(path: str, have: Mapping[str, str]) -> list[str]:
    """A path and every link on the way to its file."""
    steps = [path]
    while (target := have.get(steps[-1], "")) and len(steps) < _LINKS:
        steps.append(posixpath.normpath(posixpath.join(posixpath.dirname(steps[-1]), target)))
    return [step for step in steps if step in have]
