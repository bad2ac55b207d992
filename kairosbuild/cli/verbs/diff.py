"""`kbuild diff`: what differs between two recipes, published references or files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.cli.running import running
from kairosbuild.cli.style import out

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.proof.diff import Difference, Some

_MOST = 20  # files and modules that are named; --json names all


def main(arguments: argparse.Namespace) -> int:
    """Print it; 0 when nothing differs, 1 when something does, as diff has it."""
    arguments.recipe = next(filter(given.names_recipe, (arguments.a, arguments.b)), None)
    with running(arguments) as parts:
        found, only = _compared(parts, arguments)
    equal = not only and all(one.equal for one in found.values())
    if arguments.json:
        given.print_json({"a": arguments.a, "b": arguments.b, **_json(found, only, equal)})
    else:
        print("\n".join(_all_told(found, only)))
    return 0 if equal else 1


def _compared(parts: Parts, arguments: argparse.Namespace) -> tuple[dict[str, Difference], dict[str, str]]:
    """The difference on each platform that both have ("" where neither has several), and what only one has."""
    from kairosbuild.cli.sides import platform_of, platforms, side
    from kairosbuild.proof.diff import difference

    names = (arguments.a, arguments.b)
    a, b = (platforms(parts, name) for name in names)
    only: dict[str, str] = {}
    if bool(a) != bool(b):  # the one that has a single platform says which
        said = platform_of(parts, arguments.b if a else arguments.a)
        common = [said if said in (*a, *b) else (a or b)[0]]
    else:
        common = [one for one in a if one in b] if a else [""]
        only = {one: "removed" for one in a if one not in b} | {one: "added" for one in b if one not in a}
    found: dict[str, Difference] = {}
    for one in common:
        before, after = (side(parts, arguments, name, one) for name in names)
        found[one] = difference(before, after, _order)
    return found, only


def _json(found: Mapping[str, Difference], only: Mapping[str, str], equal: bool) -> dict[str, Any]:
    """One comparison as it is; several, or platforms that only one side has, by platform."""
    if len(found) == 1 and not only:
        return next(iter(found.values())).json()
    return {
        "equal": equal,
        "platforms": {name: one.json() for name, one in found.items()},
        "only": dict(only),
    }


def _all_told(found: Mapping[str, Difference], only: Mapping[str, str]) -> Iterator[str]:
    for name, how in only.items():
        yield f"{out.red('-') if how == 'removed' else out.green('+')} {name}"
    for name, one in found.items():
        if len(found) > 1:
            yield out.bold(name)
        yield from _told(one)


def _order(kind: str, a: str, b: str) -> int:
    """The order of versions as their package manager has it."""
    from kairosbuild.sources import evr, version

    if kind == "rpm":
        return evr.compare(_evr(a), _evr(b))
    return version.compare(a, b)


def _evr(text: str) -> tuple[str, str, str]:
    epoch, colon, rest = text.partition(":")
    upstream, _, release = (rest if colon else text).rpartition("-")
    return (epoch if colon else "0", upstream, release)


def _told(found: Difference) -> Iterator[str]:
    if found.equal:
        yield out.green("nothing differs")
        return
    for title, some, most in (
        ("packages", found.packages, 0), ("kernel", found.kernels, 0), ("modules", found.modules, _MOST),
        ("command line", found.cmdline, 0), ("files", found.files, _MOST), ("layers", found.layers, 0),
        ("artifacts", found.artifacts, 0),
    ):  # fmt: skip
        if some:
            yield out.bold(title) + out.dim(f"  {_count(some)}")
            yield from _lines(some, most)
    before, after = found.size
    if before or after:
        yield out.bold("size") + f"  {_bytes(before)} → {_bytes(after)} ({after - before:+} bytes)"
    yield out.bold("to fetch") + f"  {_bytes(found.fetch)}"


def _lines(some: Some, most: int) -> Iterator[str]:
    """What changed first: it is the least and says the most."""
    lines = []
    for one in some.changed:
        mark = {"up": out.green("↑"), "down": out.yellow("↓")}.get(one.how, out.yellow("~"))
        how = f"  {one.how}" if one.how not in ("up", "down", "") else ""
        lines.append(f"  {mark} {one.name}  {out.dim(f'{_value(one.before)} → {_value(one.after)}{how}')}")
    for mark, some_names in ((out.red("-"), some.removed), (out.green("+"), some.added)):
        lines += [f"  {mark} {name}  {out.dim(_value(value))}".rstrip() for name, value in some_names.items()]
    yield from lines[: most or None]
    if most and len(lines) > most:
        yield out.dim(f"  and {len(lines) - most} more; --json names them")


def _count(some: Some) -> str:
    counts = ((len(some.added), "added"), (len(some.removed), "removed"), (len(some.changed), "changed"))
    return ", ".join(f"{number} {word}" for number, word in counts if number)


def _value(value: object) -> str:
    return _bytes(value) if isinstance(value, int) else str(value)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
