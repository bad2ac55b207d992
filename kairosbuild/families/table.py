"""The table of families. Adding one is its file and a line here; the first that fits a root is taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module

from kairosbuild.families.family import Family

_PLACES = {
    "apk": "apk.Apk",
    "apt": "apt.Apt",
    "dnf": "dnf.Dnf",
    "pacman": "pacman.Pacman",
    "zypper": "zypper.Zypper",
}


class _Table(Mapping[str, Family]):
    """Families by name, each made once and its module imported when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Family] = {}

    def __getitem__(self, name: str) -> Family:
        if name not in self._made:
            module, _, family = _PLACES[name].partition(".")
            self._made[name] = getattr(import_module(f"kairosbuild.families.{module}"), family)()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


TABLE: Mapping[str, Family] = _Table()


def recognised(files: Collection[str], names: Collection[str]) -> str:
    """The family of a root with these files that calls itself by these names; "" when it has no database."""
    having = [family for family in TABLE.values() if any(path in files for path in family.databases)]
    named = [family for family in having if not family.distributions.isdisjoint(names)]
    return next((family.name for family in (*named, *having)), "")


def databases() -> list[str]:
    """Where any family's package database may lie, sorted."""
    return sorted({path for family in TABLE.values() for path in family.databases})
