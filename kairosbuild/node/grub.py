"""GRUB, which starts the entries on machines with a BIOS: the files it reads beside them, and the tries it counted.

It knows the same kernel images as systemd-boot and cannot rename them (`boot/grub.py`). So a try that it took stands
in its environment, and is taken off what the file's name says. On a disk without GRUB all of this does nothing.
"""

from __future__ import annotations

from pathlib import Path

from kairosbuild.boot import grub
from kairosbuild.core.errors import KbuildError
from kairosbuild.node import durable, uki
from kairosbuild.node.problem import Problem

_ONCE = "once"


class Grub:
    """GRUB's files on a mounted EFI partition."""

    def __init__(self, esp: Path) -> None:
        self.esp = esp
        self.there = (esp / grub.CONFIGURATION).is_file()

    def tries(self) -> dict[str, int]:
        """How often GRUB has tried each entry since it was counted, by GRUB's variable."""
        return {name: len(row) for name, row in self._variables().items()} if self.there else {}

    def describe(self, label: str, kernel: Path) -> None:
        """Let GRUB know where in this file the kernel is, and give the entry all its tries. Before the entry is there."""
        if self.there:
            described = _described(label, kernel)
            folder = self.esp / grub.ENTRIES
            if not folder.is_dir():
                folder.mkdir(parents=True)
                durable.sync_folder(folder.parent)
            durable.write(folder / f"{label}.cfg", described)
            self.forget(label)

    def forget(self, label: str) -> None:
        """Give an entry all its tries."""
        found = self._variables() if self.there else {}
        if found.pop(grub.variable(label), ""):
            self._write(found)

    def remove(self, label: str) -> None:
        """Forget an entry that is gone."""
        if self.there:
            durable.remove(self.esp / grub.ENTRIES / f"{label}.cfg")
            self.forget(label)

    def start_once(self, label: str) -> None:
        """Have GRUB start this entry the next time, and only then."""
        self._write({**self._variables(), _ONCE: label})

    def _variables(self) -> dict[str, str]:
        try:
            return grub.variables((self.esp / grub.ENVIRONMENT).read_bytes())
        except OSError:
            return {}

    def _write(self, values: dict[str, str]) -> None:
        durable.write(self.esp / grub.ENVIRONMENT, grub.environment(values))


def _described(label: str, kernel: Path) -> bytes:
    with kernel.open("rb") as file:
        places = uki.sections(file.read(uki.HEAD))
    try:
        return grub.described(label, places[".linux"], places[".initrd"], uki.read(kernel).cmdline)
    except (KeyError, KbuildError) as problem:
        raise Problem(f"{kernel.name} cannot be started by GRUB", reason="bad-kernel") from problem
