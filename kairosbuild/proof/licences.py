"""Licences as packages state them, as SPDX expressions.

Nothing is guessed from a licence's text. What no list knows becomes a `LicenseRef-` with the package's own
words; a package that says nothing in a form that can be read has none (`NOASSERTION`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

NONE = "NOASSERTION"
_DEP5 = re.compile(r"https?://www\.debian\.org/doc/packaging-manuals/copyright-format/1\.0/?|DEP-?5", re.I)
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9.-]+")
_ALIASES = {
    "expat": "MIT",
    "artistic": "Artistic-1.0-Perl",
    "bsd-2-clauses": "BSD-2-Clause",
    "bsd-3-clauses": "BSD-3-Clause",
    "bsd-4-clause-uc": "BSD-4-Clause-UC",
    "cc0": "CC0-1.0",
    "boost-1.0": "BSL-1.0",
    "bsl-1": "BSL-1.0",
    "psf-2": "PSF-2.0",
    "apache-2": "Apache-2.0",
    "openssl": "OpenSSL",
    "gfdl-niv-1.2": "GFDL-1.2-no-invariants-only",
    "gfdl-niv-1.2+": "GFDL-1.2-no-invariants-or-later",
    "gfdl-niv-1.3": "GFDL-1.3-no-invariants-only",
    "gfdl-niv-1.3+": "GFDL-1.3-no-invariants-or-later",
    "gplv2": "GPL-2.0-only",
    "gplv2+": "GPL-2.0-or-later",
    "gplv3": "GPL-3.0-only",
    "gplv3+": "GPL-3.0-or-later",
    "lgplv2": "LGPL-2.0-only",
    "lgplv2+": "LGPL-2.0-or-later",
    "lgplv2.1+": "LGPL-2.1-or-later",
    "lgplv3+": "LGPL-3.0-or-later",
    "asl 2.0": "Apache-2.0",
    "mplv2.0": "MPL-2.0",
}
_GNU = re.compile(r"(A?L?GPL|GFDL)-?v?(\d(?:\.\d)?)(\+|-or-later|-only)?", re.I)


def of_copyright(text: str) -> str:
    """The licences that a Debian copyright file lists, all of them at once; NONE when it is free text."""
    head = text.split("\n\n", 1)[0]
    if not re.match(r"(?i)\s*format", head) or not _DEP5.search(head):
        return NONE
    names = dict.fromkeys(re.findall(r"(?im)^License:[ \t]*(\S.*?)[ \t]*$", text))
    return together([expression(_debian(name)) for name in names])


def together(expressions: list[str]) -> str:
    """All of these at once, each once, in one order."""
    known = sorted({one for one in expressions if one not in ("", NONE)})
    if not known:
        return NONE
    if len(known) == 1:
        return known[0]
    return " AND ".join(f"({one})" if " OR " in one or " AND " in one else one for one in known)


def expression(text: str) -> str:
    """What was stated as a valid SPDX expression; words that no list knows become references."""
    text = " ".join(text.split())
    if not text:
        return NONE
    try:
        parsed = _grammar().parse(text)
        if parsed is None:
            return NONE
        renamed = parsed.subs({one: _symbol(one) for one in parsed.symbols})
        return str(renamed.render("{symbol.key}"))
    except Exception:  # the parser raises errors of several libraries for what is no expression
        return reference(text)


def reference(text: str) -> str:
    """A licence by a name of its own."""
    return "LicenseRef-" + (_NOT_A_NAME.sub("-", text).strip("-.")[:100] or "unnamed")


def references(licence: str) -> tuple[str, ...]:
    """The references in an expression."""
    return tuple(dict.fromkeys(re.findall(r"LicenseRef-[A-Za-z0-9.-]+", licence)))


def names(licence: str) -> tuple[str, ...]:
    """Every licence an expression names, without operators and exceptions."""
    words = re.sub(r"\bWITH\s+\S+", "", licence.replace("(", " ").replace(")", " ")).split()
    return tuple(dict.fromkeys(word for word in words if word not in ("AND", "OR")))


def accepts(licence: str, allowed: Callable[[str], bool]) -> bool:
    """Whether one may choose among an expression's alternatives so that all that remains is allowed."""
    return _accepted(_grammar().parse(licence), allowed)


def _accepted(parsed: Any, allowed: Callable[[str], bool]) -> bool:
    parts = [_accepted(one, allowed) for one in getattr(parsed, "args", ())]
    if parts:
        return any(parts) if type(parsed).__name__ == "OR" else all(parts)
    return allowed(str(getattr(parsed, "license_symbol", parsed).key))


def version() -> str:
    """The list that names are known by."""
    import importlib.metadata

    return importlib.metadata.version("license-expression")


@cache
def _grammar() -> Any:
    """Operators alone: what a name means is looked up here, since the library's aliases go too far."""
    from license_expression import Licensing

    return Licensing()


@cache
def _lists() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _symbol(one: Any) -> Any:
    """A symbol of the expression as SPDX has it."""
    from license_expression import LicenseSymbol, LicenseWithExceptionSymbol

    if isinstance(one, LicenseWithExceptionSymbol):
        if one.exception_symbol.key not in _lists().known_symbols:
            return LicenseSymbol(reference(str(one)))
        return LicenseSymbol(f"{_name(one.license_symbol.key)} WITH {one.exception_symbol.key}")
    return LicenseSymbol(_name(one.key))


def _name(key: str) -> str:
    alias = _ALIASES.get(key.lower()) or _gnu(key)
    if alias:
        return alias
    known = _lists().known_symbols
    if key in known or key.startswith("LicenseRef-"):
        return key
    exact = next((name for name in known if name.lower() == key.lower()), "")
    return exact or reference(key)


def _gnu(key: str) -> str:
    match = _GNU.fullmatch(key)
    if not match:
        return ""
    number = match[2] if "." in match[2] else match[2] + ".0"
    later = "or-later" if match[3] in ("+", "-or-later") else "only"
    return f"{match[1].upper()}-{number}-{later}"


def _debian(text: str) -> str:
    """DEP-5's short names and its `and`, `or`, `with … exception`, as an expression."""
    text = re.sub(r"\s*,\s*(and|or)\b", r" \1", text)
    text = re.sub(r"(\S+) with ([\w.-]+)(?:[- ]exceptions?)?(?=$|[\s,)])", _exception, text, flags=re.I)
    return " ".join(_word(word) for word in text.split())


def _exception(match: re.Match[str]) -> str:
    """`GPL-2 with Linux-syscall-note exception` as SPDX has it, or as one name where it has none."""
    for wanted in (match[2].lower(), f"{match[2].lower()}-exception"):
        for key in _lists().known_symbols:
            if key.lower() == wanted:
                return f"{match[1]} WITH {key}"
    return f"{match[1]}-with-{match[2]}"


def _word(word: str) -> str:
    if word.lower() in ("and", "or", "with"):
        return word.upper()
    bare = word.strip("(),")
    return word.replace(bare, _ALIASES.get(bare.lower()) or _gnu(bare) or bare, 1) if bare else word
