"""What an image holds: its layers with their nodes, and every package with the node that brought it.

The packages are those of the databases in the image, since that is what runs. The lock adds each one's file
by digest, and what no database tells: a kernel is taken out of its package without being installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kairosbuild.proof import licences, packages
from kairosbuild.proof.packages import Package
from kairosbuild.proof.view import Layer, View

VERSION = 1
"""Raise it when the same layers would be told in another way."""

_TYPES = {"apt": "deb", "dnf": "rpm", "zypper": "rpm", "apk": "apk", "pacman": "alpm"}
_INSTALLERS = ("base", "packages")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer as a document names it: whose it is, its diffID, its size, and how many entries it has."""

    node: str
    digest: str
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class Contents:
    """See the module. `system` is os-release's ID, VERSION_ID and the like."""

    layers: tuple[LayerInfo, ...]
    packages: tuple[Package, ...]
    system: Mapping[str, str]

    def json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "layers": [[one.node, one.digest, one.size, one.entries] for one in self.layers],
            "packages": [one.json() for one in self.packages],
            "system": dict(self.system),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Contents:
        """What `json` gave."""
        layers = tuple(LayerInfo(*row) for row in document["layers"])
        return cls(layers, tuple(Package(**row) for row in document["packages"]), document["system"])


def contents(layers: Sequence[Layer], locked: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Contents:
    """What these layers hold, bottom to top. `locked` gives the kind and the locked data of nodes by name."""
    view = View(layers)
    infos = tuple(LayerInfo(one.node, one.digest, one.size, len(one.index)) for one in layers)
    return Contents(infos, _packages(view, locked), _system(packages.system(view)))


def _packages(view: View, locked: Mapping[str, tuple[str, Mapping[str, Any]]]) -> tuple[Package, ...]:
    files = {(row["name"], row["version"]): (node, row) for node, row in _rows(view, locked)}
    brought = _brought(view)
    found = []
    for one in packages.installed(view):
        node, row = files.get((one.name, one.version), (brought.get((one.name, one.version), ""), {}))
        found.append(replace(one, node=node, digest=row.get("digest", "")))
    known = {(one.name, one.version) for one in found}
    databases = bool(found)
    for (name, version), (node, row) in files.items():
        kind, data = locked[node]
        if (name, version) not in known and not (databases and kind in _INSTALLERS):
            found.append(_uninstalled(view, node, row, data))
    return tuple(sorted(found))


def _rows(
    view: View, locked: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The package rows that the lock has for the nodes of these layers, each with its node."""
    nodes = dict.fromkeys(one.node for one in view.layers if one.node in locked)
    return [
        (node, row)
        for node in nodes
        for row in locked[node][1].get("packages", ())
        if isinstance(row, Mapping) and {"name", "version"} <= set(row)
    ]


def _uninstalled(view: View, node: str, row: Mapping[str, Any], data: Mapping[str, Any]) -> Package:
    """A package that was unpacked and not installed."""
    family = data.get("family") or data.get("system", {}).get("family", "apt")
    kind = _TYPES.get(family, "generic")
    licence = packages.copyright_of(view, row["name"]) if kind == "deb" else licences.NONE
    if row.get("license"):
        licence = licences.expression(row["license"])
    return Package(
        kind, row["name"], row["version"], row.get("arch", ""), licence, node, row.get("digest", "")
    )


def _brought(view: View) -> dict[tuple[str, str], str]:
    """For each package of a database the node of the lowest layer from which on it was there."""
    found: dict[tuple[str, str], str] = {}
    for top, layer in enumerate(view.layers):
        if not any(path.rpartition("/")[2] in _DATABASES for path in layer.index.paths()):
            continue
        for one in packages.installed(View(view.layers[: top + 1])):
            found.setdefault((one.name, one.version), layer.node)
    return found


_DATABASES = {"status", "installed", "rpmdb.sqlite", "desc", "status.d"}


def _system(said: Mapping[str, str]) -> dict[str, str]:
    wanted = ("ID", "VERSION_ID", "VERSION_CODENAME", "PRETTY_NAME", "NAME")
    return {name: said[name] for name in wanted if name in said}
