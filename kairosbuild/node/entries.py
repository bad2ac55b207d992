"""Boot entries: unified kernel images on the EFI partition whose names carry order and tries.

`NAME-SEQUENCE+LEFT-DONE.efi`: the boot loader starts the highest sequence that has tries left, and counts them
down by renaming (Boot Loader Specification, boot counting), or, where it is GRUB, in its own environment. An entry that works gets its tries back at each
start, so that one whose layers were damaged later runs out of them as well, and the next has its turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kairosbuild.boot.grub import variable
from kairosbuild.node import durable, uki
from kairosbuild.node.grub import Grub
from kairosbuild.node.problem import Problem
from kairosbuild.node.uki import Kernel

FOLDER = "EFI/Linux"
_NAME = re.compile(r"(?P<name>.+?)(?:-(?P<sequence>\d+))?(?:\+(?P<left>\d+)(?:-(?P<done>\d+))?)?\.efi", re.I)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `left` is None where nothing is counted; `kernel` what its file says."""

    path: Path
    name: str
    sequence: int
    left: int | None
    done: int
    kernel: Kernel

    @property
    def label(self) -> str:
        """Name and sequence: what it is called whatever its counters say."""
        return f"{self.name}-{self.sequence}" if self.sequence else self.name

    @property
    def exhausted(self) -> bool:
        """Whether all its tries failed."""
        return self.left == 0

    def tried(self, more: int) -> Entry:
        """The entry when it was tried so many times beyond what its name says."""
        left = None if self.left is None else max(0, self.left - more)
        return replace(self, left=left, done=self.done + more)


class Entries:
    """The entries of one mounted EFI partition."""

    def __init__(self, esp: Path) -> None:
        self.folder = esp / FOLDER
        self.grub = Grub(esp)

    def all(self) -> list[Entry]:
        """All of them, the one that the boot loader would start first."""
        found, tried = [], self.grub.tries()
        for path in sorted(self.folder.glob("*.[eE][fF][iI]")):
            if (match := _NAME.fullmatch(path.name)) and (kernel := _readable(path)):
                one = _named(path, match, kernel)
                found.append(one.tried(tried.get(variable(one.label), 0)))
        return sorted(_distinct(found), key=_order)

    def add(self, kernel: bytes, name: str, tries: int) -> Entry:
        """Make this the entry that is started next: written beside, synced, renamed; the last step of anything."""
        label = f"{name}-{self.next_sequence()}"
        beside = self.folder / "kbuild.part"
        with beside.open("wb") as file:
            file.write(kernel)
            durable.sync(file.fileno())
        self.grub.describe(label, beside)
        target = self.folder / f"{label}+{tries}.efi"
        durable.move(beside, target)
        return next(one for one in self.all() if one.path == target)

    def counted(self, entry: Entry, tries: int) -> Entry:
        """The entry with so many tries from now on."""
        self.grub.forget(entry.label)
        return self._renamed(entry, f"{entry.label}+{tries}.efi")

    def first(self, entry: Entry, tries: int) -> Entry:
        """The entry as the one that is started next."""
        label = f"{entry.name}-{self.next_sequence()}"
        self.grub.describe(label, entry.path)
        found = self._renamed(entry, f"{label}+{tries}.efi")
        self.grub.remove(entry.label)
        return found

    def remove(self, entry: Entry) -> None:
        """Take an entry away."""
        durable.remove(entry.path)
        self.grub.remove(entry.label)

    def next_sequence(self) -> int:
        """A sequence above all others."""
        return max((one.sequence for one in self.all()), default=0) + 1

    def leftovers(self) -> list[Path]:
        """What an interrupted upgrade left."""
        return sorted(self.folder.glob("*.part"))

    def _renamed(self, entry: Entry, name: str) -> Entry:
        target = self.folder / name
        if entry.path != target:
            durable.move(entry.path, target)
        match = _NAME.fullmatch(name)
        assert match is not None, "it was made to match"
        return _named(target, match, entry.kernel)


def _named(path: Path, match: re.Match[str], kernel: Kernel) -> Entry:
    left = int(match["left"]) if match["left"] is not None else None
    return Entry(path, match["name"], int(match["sequence"] or 0), left, int(match["done"] or 0), kernel)


def running(entries: Iterable[Entry], cmdline: str) -> Entry | None:
    """The entry this machine was started from: the one whose kernel lists the layers that are mounted."""
    layers = uki.argument(cmdline, "kbuild.layers")
    recovery = "kbuild.recovery" in cmdline.split()
    for one in entries:
        same = uki.argument(one.kernel.cmdline, "kbuild.layers") == layers
        if same and one.kernel.recovery == recovery:
            return one
    return None


def _distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Each label once: a rename cut off half-way can leave two names of one file; the fewest tries count."""
    found: dict[str, Entry] = {}
    for one in entries:
        other = found.get(one.label)
        if other is None or (one.left is not None and (other.left is None or one.left < other.left)):
            found[one.label] = one
    return list(found.values())


def _order(entry: Entry) -> tuple[bool, bool, int]:
    return entry.exhausted, entry.kernel.recovery, -entry.sequence


def _readable(path: Path) -> Kernel | None:
    try:
        return uki.read(path)
    except Problem:
        return None
