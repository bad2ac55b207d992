"""The table of kinds. Adding one is its file and a line here.

A kind's module is imported when the kind is first asked for: a run in which one overlay changed has
no use for the rest. `tests/kinds/test_table.py` holds every line to `graph.node.Kind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from kairosbuild.graph.node import Kind, KindTable

_PLACES = {
    "agent": "agent.Agent",
    "base": "base.Base",
    "boot": "boot.Boot",
    "boot-test": "boot_test.BootTest",
    "confext": "confext.Confext",
    "disk": "disk.Disk",
    "dockerfile": "dockerfile.Dockerfile",
    "drivers": "drivers.Drivers",
    "fetch": "fetch.Fetch",
    "image": "image.Image",
    "initrd": "initrd.Initrd",
    "kernel": "kernel.Kernel",
    "iso": "iso.Iso",
    "netboot": "netboot.Netboot",
    "overlay": "overlay.Overlay",
    "packages": "packages.Packages",
    "rootfs": "rootfs.Rootfs",
    "rule": "run.Rule",
    "run": "run.Run",
    "sign-modules": "sign_modules.SignModules",
    "sysext": "sysext.Sysext",
    "tools": "tools.Tools",
    "uki": "uki.Uki",
}


class _Table(Mapping[str, Kind]):
    """Kinds by name, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> Kind:
        if name not in self._made:
            module, _, kind = _PLACES[name].partition(".")
            self._made[name] = getattr(import_module(f"kairosbuild.kinds.{module}"), kind)()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in _PLACES

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


TABLE: KindTable = _Table()
