"""Configurations of kernels: read, merged from fragments, and compared with what came of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kairosbuild.core.errors import InputError

_SET = re.compile(r"(CONFIG_[A-Za-z0-9_]+)=(.*)")
_UNSET = re.compile(r"# (CONFIG_[A-Za-z0-9_]+) is not set")


def read(text: bytes, name: str) -> dict[str, str]:
    """Option → value (`n` for one that is not set). Raises InputError (`bad-kconfig`), with the line."""
    found = {}
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        if match := _SET.fullmatch(line.strip()) or _UNSET.fullmatch(line.strip()):
            found[match[1]] = match[2] if match.re is _SET else "n"
        elif line.strip() and not line.lstrip().startswith("#"):
            raise InputError(
                f"{name}:{number}: {line.strip()[:80]!r} is no line of a kernel configuration",
                reason="bad-kconfig",
                hint="CONFIG_NAME=y, or # CONFIG_NAME is not set",
            )
    return found


def merged(parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Fragments over a base; the last that says something of an option counts."""
    found: dict[str, str] = {}
    for part in parts:
        found |= part
    return found


def write(options: Mapping[str, str]) -> bytes:
    """The file."""
    lines = [f"# {k} is not set" if v == "n" else f"{k}={v}" for k, v in sorted(options.items())]
    return "".join(f"{line}\n" for line in lines).encode()


def lost(wanted: Mapping[str, str], came: Mapping[str, str]) -> list[str]:
    """What was asked for and did not come out: Kconfig drops what depends on something that is off."""
    return [
        f"{name}={value} (it is {came.get(name, 'n')})"
        for name, value in sorted(wanted.items())
        if came.get(name, "n") != value
    ]
