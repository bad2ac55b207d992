"""What the boot chain wants to know of a layer, found in one pass over its index and kept as a document."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kairosbuild.oci.entry import OPAQUE, hidden_by, is_opaque, is_whiteout
from kairosbuild.oci.index import Index

VERSION = 2
"""Raise it when the same index would be surveyed otherwise."""

PLACES = ("etc", "var", "home", "root", "opt", "srv")
"""A machine's writable places, each an overlay of the layers' own folders; `initrd.sh` has the same list."""

_MODULE = re.compile(r"(?:usr/)?lib/modules/([^/]+)/(.+)")
_KERNEL = re.compile(r"(?:boot/vmlinuz-|(?:usr/)?lib/modules/)([^/]+?)(?:/vmlinuz)?")
_LIBRARY = re.compile(r"(?:usr/)?(?:local/)?lib(?:64|/[^/]+-linux-[^/]+)?/lib[^/]*\.so(?:\.[^/]*)?")
_PENDING = re.compile(
    r"(?:usr/lib|etc)/(?:sysusers\.d|udev/hwdb\.d|systemd/catalog)/[^/]+|usr/lib/systemd/catalog/[^/]+"
)


@dataclass(frozen=True, slots=True)
class Survey:
    """Facts of one layer.

    `top` is what stands in its root by name; `places` says of each writable place that the layer touches
    whether it adds to it (`dir`), replaces it (`opaque`) or takes it away (`gone`); `opaque` that it
    hides everything below it; `implied` are folders it has something in and no entry for.
    """

    top: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    opaque: bool = False
    implied: Sequence[str] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)  # version → path of the image
    modules: Sequence[str] = ()  # versions it has modules of
    depmod: Sequence[str] = ()  # versions it has dependency lists of
    os_release: str = ""
    libraries: bool = False
    library_cache: bool = False
    packages: bool = False  # it holds a package database
    pending: bool = False  # it adds what systemd settles at an update
    systemd: bool = False

    def json(self) -> dict[str, Any]:
        """The document."""
        return asdict(self)


def survey(index: Index, databases: Collection[str] = ()) -> Survey:
    """Look at every path once. `databases` are the paths that a database of packages may have."""
    kinds = {path: letter for path, letter, *_ in index.rows}
    kernels: dict[str, str] = {}
    modules: set[str] = set()
    depmod: set[str] = set()
    for path, kind in kinds.items():
        if match := _MODULE.fullmatch(path):
            if match[2].endswith((".ko", ".ko.xz", ".ko.zst", ".ko.gz")):
                modules.add(match[1])
            elif match[2] == "modules.dep":
                depmod.add(match[1])
        if (match := _KERNEL.fullmatch(path)) and kind == "f" and "vmlinuz" in path:
            kernels.setdefault(match[1], path)
    return Survey(
        top={path: kind for path, kind in kinds.items() if "/" not in path and not is_whiteout(path)},
        places=_places(kinds),
        opaque=OPAQUE in kinds,
        implied=_implied(kinds),
        kernels=kernels,
        modules=sorted(modules),
        depmod=sorted(depmod),
        os_release=next((p for p in ("usr/lib/os-release", "etc/os-release") if kinds.get(p) == "f"), ""),
        libraries=any(_LIBRARY.fullmatch(path) for path in kinds if ".so" in path)
        or any(path.startswith("etc/ld.so.conf") for path in kinds),
        library_cache="etc/ld.so.cache" in kinds,
        packages=any(path in kinds for path in databases),
        pending=any(_PENDING.fullmatch(path) for path in kinds),
        systemd="usr/lib/systemd/systemd" in kinds,
    )


def cuts(stack: Sequence[Survey]) -> dict[str, int]:
    """For each place that does not reach down to the lowest layer: of how many layers, from the top, it is.

    Overlayfs looks at whiteouts only below the roots of what it stacks, so that one *of* the place itself
    has to be seen here.
    """
    found = {}
    for place in PLACES:
        for count, one in enumerate(reversed(stack), 1):
            state = one.places.get(place)
            if state == "gone":
                found[place] = count - 1
            elif state == "opaque":
                found[place] = count
            else:
                continue
            break
    return {place: count for place, count in found.items() if count < len(stack)}


def visible(stack: Sequence[Survey]) -> int:
    """The number of the lowest layer that can be seen at all: one with an opaque root hides those below."""
    return max((number for number, one in enumerate(stack) if one.opaque), default=0)


def hidden_links(stack: Sequence[Survey]) -> list[tuple[int, str]]:
    """Layers with a folder where those below have a link, as (layer, name): it would hide the link."""
    links: set[str] = set()
    found = []
    for number, one in enumerate(stack):
        folders = {path.partition("/")[0] for path in one.implied} | {
            n for n, kind in one.top.items() if kind == "d"
        }
        found += [(number, name) for name in sorted(folders & links)]
        links |= {name for name, kind in one.top.items() if kind == "l"}
        links -= {name for name, kind in one.top.items() if kind != "l"}
    return found


def _places(kinds: Mapping[str, str]) -> dict[str, str]:
    gone = {
        hidden_by(path) for path in kinds if "/" not in path and is_whiteout(path) and not is_opaque(path)
    }
    found = {}
    for place in PLACES:
        if f"{place}/{OPAQUE}" in kinds:
            found[place] = "opaque"
        elif place in gone or kinds.get(place, "d") != "d":
            found[place] = "gone"
        elif place in kinds:
            found[place] = "dir"
    return found


def _implied(kinds: Mapping[str, str]) -> list[str]:
    missing: set[str] = set()
    for path in kinds:
        folder = path.rpartition("/")[0]
        while folder and folder not in kinds and folder not in missing:
            missing.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(missing)
