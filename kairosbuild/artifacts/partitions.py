"""A partition table as a recipe declares it, laid out around what its partitions hold.

Sizes that are not given follow from the contents; when the disk's own size is given, the last partition
without one takes what is left. Every problem names the number that would fit.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kairosbuild.boot import ext4, fat, gpt
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.recipe.fields import choice, size, text

MIB = 1 << 20
TYPES = {
    "esp": gpt.ESP,
    "bios-boot": gpt.BIOS_BOOT,
    "layers": gpt.LAYERS,
    "recovery": gpt.RECOVERY,
    "persistent": gpt.PERSISTENT,
    "root": gpt.ROOT_X86_64,
    "linux": gpt.LINUX,
    "home": gpt.HOME,
    "srv": gpt.SRV,
    "var": gpt.VAR,
    "swap": gpt.SWAP,
}
"""Partition types by name. <https://uapi-group.org/specifications/specs/discoverable_partitions_specification/>"""

LABELS = {"recovery": "kbuild-recovery", "persistent": "kbuild-state"}  # ext4 has room for 16 characters
SECTORS = ("512", "4096")
_LEAST_EXT4 = 16 * MIB
_IDENTITY = uuid.UUID("0f1f3b86-2d0a-4f0c-9d49-6b6275696c64")  # names that uuid5 derives from
_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _type_complaint(word: str) -> str:
    if word in TYPES or _GUID.fullmatch(word):
        return ""
    return f"{word!r} is no partition type; known are a GUID, {', '.join(TYPES)}"


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """One partition, in the order on the disk."""

    type: str = text(
        "What it is for: `esp`, `bios-boot`, `layers`, `recovery`, `persistent`, `root`, `linux`, `home`, "
        "`srv`, `var`, `swap`, or the GUID of any other type.",
        check=_type_complaint,
    )
    name: str = text("Its name in the table; by default its type.", "", pattern=".{0,36}")
    size: int = size("By default what its content needs; the last without a size takes what is left.", 0)
    filesystem: str = choice(
        "What an extra partition is formatted with; `auto` is ext4 for recovery and persistent, else none.",
        ("auto", "ext4", "none"),
        "auto",
    )


class Content(Protocol):
    """What a partition holds."""

    def room(self, sector: int) -> int:
        """The size it is given when the table does not say."""

    def least(self, sector: int) -> int:
        """The bytes below which it does not fit."""

    def pieces(self, at: Place) -> Iterator[tuple[int, bytes | Part]]:
        """What is written where, relative to the partition."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a partition came to lie, and what its filesystem is named after."""

    start: int
    size: int
    sector: int
    identity: uuid.UUID
    epoch: int


@dataclass(frozen=True, slots=True)
class Esp:
    """An EFI system partition; `spare` are bytes that have to stay free for later entries."""

    files: Mapping[str, bytes]
    spare: int = 0

    def room(self, sector: int) -> int:
        """Enough for a few versions; FAT32 has a least number of clusters, which large sectors multiply."""
        return max(128 * MIB if sector == 512 else 260 * MIB, self.least(sector))

    def least(self, sector: int) -> int:
        """The files and what has to stay free."""
        return fat.least([*(len(data) for data in self.files.values()), self.spare], sector)

    def pieces(self, at: Place) -> Iterator[tuple[int, bytes | Part]]:
        """The filesystem."""
        serial = at.identity.int & 0xFFFFFFFF
        volume = fat.Volume(at.size, "ESP", serial, at.epoch, at.start // at.sector, at.sector)
        return iter(fat.build(volume, self.files))


@dataclass(frozen=True, slots=True)
class Files:
    """An ext4 of a few large files in its root, and of nothing when there are none."""

    label: str
    files: Mapping[str, Part]
    versions: int = 1  # how often the files have to fit, when it is as large as it likes
    headroom: int = 0
    floor: int = _LEAST_EXT4  # what it has to have, whatever is in it

    def room(self, sector: int) -> int:
        """Space for as many versions of everything."""
        return max(self.versions * ext4.need(self._sizes()) + self.headroom, self.least(sector))

    def least(self, sector: int) -> int:
        """The files and the filesystem's own."""
        return max(ext4.need(self._sizes()), self.floor)

    def pieces(self, at: Place) -> Iterator[tuple[int, bytes | Part]]:
        """The filesystem, its files as parts of files elsewhere."""
        volume = ext4.Volume(at.size, self.label, at.identity, at.epoch)
        found = ext4.layout(volume, {name: part.size for name, part in self.files.items()})
        yield from found.metadata
        for name, runs in found.files.items():
            done = 0
            for offset, length in runs:
                part = self.files[name]
                yield offset, Part(part.path, part.offset + done, length)
                done += length

    def _sizes(self) -> list[int]:
        return [part.size for part in self.files.values()]


@dataclass(frozen=True, slots=True)
class Bytes:
    """A partition that starts with these bytes, whatever they are; `spare` bytes more stay free."""

    content: bytes | Part = b""
    spare: int = 0

    def room(self, sector: int) -> int:
        """As large as what is in it."""
        return max(self.least(sector), MIB)

    def least(self, sector: int) -> int:
        """What is in it."""
        size = self.content.size if isinstance(self.content, Part) else len(self.content)
        return size + self.spare

    def pieces(self, at: Place) -> Iterator[tuple[int, bytes | Part]]:
        """Its bytes at its beginning."""
        yield 0, self.content


@dataclass(frozen=True, slots=True)
class Table:
    """What a disk is laid out from: the declared partitions, and what those of each type hold.

    `seed` is what identities follow from; `size` 0 is as large as it needs.
    """

    name: str
    partitions: Sequence[PartitionSpec]
    contents: Mapping[str, Content]
    seed: str
    size: int = 0
    sector: int = 512
    epoch: int = 0
    whole: int = MIB  # what the disk's size is a multiple of

    def lay_out(self) -> tuple[Sparse, tuple[gpt.Partition, ...]]:
        """The disk, and where its partitions lie. Raises `partition-missing`, `partition-size`, `disk-size`."""
        self._refuse()
        contents = [self._content(one) for one in self.partitions]
        sizes = self._sizes(contents)
        placed = self._placed(sizes)
        total = self._up(self.size or placed[-1].start + placed[-1].size + gpt.ALIGN)
        disk = Sparse(total)
        for offset, data in gpt.build(total, self.identity("disk"), placed, self.sector):
            disk.add(offset, data)
        for number, (one, content) in enumerate(zip(placed, contents, strict=True)):
            at = Place(one.start, one.size, self.sector, self.identity(f"volume {number}"), self.epoch)
            for offset, piece in content.pieces(at):
                disk.add(one.start + offset, piece)
        return disk, placed

    def identity(self, what: str) -> uuid.UUID:
        """An identity that follows from what is on the disk."""
        return uuid.uuid5(_IDENTITY, f"{what} {self.seed}")

    def _up(self, number: int) -> int:
        return number + -number % self.whole

    def _refuse(self) -> None:
        raise_problems([*self._missing(), *self._too_small()])

    def _missing(self) -> Iterator[KbuildError]:
        given = [one.type for one in self.partitions]
        for kind in self.contents:
            if given.count(kind) != 1 and kind not in ("recovery", "persistent"):
                yield InputError(
                    f"{self.name}: the partition table needs one partition of type {kind}, "
                    f"and there are {given.count(kind)}",
                    reason="partition-missing",
                    hint=f"add `{{type: {kind}}}` to partitions" if kind not in given else "keep one of them",
                )

    def _too_small(self) -> Iterator[KbuildError]:
        for one in self.partitions:
            content = self._content(one)
            least = up(content.least(self.sector))
            if one.size and one.size < least:
                yield InputError(
                    f"{self.name}: the {one.type} partition of {shown(one.size)} is too small for {_holds(content)}",
                    reason="partition-size",
                    hint=f"{shown(least)} is the least",
                )

    def _content(self, one: PartitionSpec) -> Content:
        if one.type in self.contents:
            return self.contents[one.type]
        formatted = one.filesystem == "ext4"
        if one.filesystem == "auto":
            formatted = one.type in ("recovery", "persistent")
        label = LABELS.get(one.type) or one.name or one.type
        return Files(label[:16], {}) if formatted else Bytes()

    def _sizes(self, contents: Sequence[Content]) -> list[int]:
        """What each partition gets; with a disk of a given size, or of whole GiB, one of them takes the rest."""
        pairs = list(zip(self.partitions, contents, strict=True))
        sizes = [up(one.size or content.room(self.sector)) for one, content in pairs]
        least = [up(one.size or content.least(self.sector)) for one, content in pairs]
        total = self._up(self.size or sum(sizes) + 2 * gpt.ALIGN)
        if sum(least) + 2 * gpt.ALIGN > total:
            raise InputError(
                f"{self.name}: a disk of {shown(self.size)} is too small for its partitions",
                reason="disk-size",
                hint=f"{shown(sum(least) + 2 * gpt.ALIGN)} is the least; or leave size out",
            )
        if open_ends := [number for number, one in enumerate(self.partitions) if not one.size]:
            sizes = _stretched(sizes, least, open_ends[-1], total - 2 * gpt.ALIGN)
        return sizes

    def _placed(self, sizes: Sequence[int]) -> tuple[gpt.Partition, ...]:
        at, found = gpt.ALIGN, []
        for number, (one, length) in enumerate(zip(self.partitions, sizes, strict=True)):
            kind = TYPES.get(one.type) or uuid.UUID(one.type)
            name = one.name or ("kbuild-layers" if one.type == "layers" else one.type[:36])
            found.append(gpt.Partition(kind, self.identity(f"partition {number}"), name, at, length))
            at += length
        return tuple(found)


def _holds(content: Content) -> str:
    versions = isinstance(content, Esp) and content.spare
    return "this version, the next and recovery" if versions else "its content"


def complaints(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a disk's declared table whatever it will hold: (field, what, what would be right)."""
    given, sector = spec["partitions"], int(spec["sector_size"])
    needed = ["esp", "layers", *(["bios-boot"] if spec["firmware"] != "uefi" else [])]
    for kind in needed if given else ():
        count = sum(one["type"] == kind for one in given)
        if count != 1:
            hint = "keep one of them" if count else f"add `{{type: {kind}}}`"
            yield "partitions", f"a disk has one partition of type {kind}, and there are {count}", hint
    least = [_emptiest(one, sector) for one in given]
    for number, (one, fits) in enumerate(zip(given, least, strict=True)):
        if one["size"] and one["size"] < fits:
            told = f"the {one['type']} partition of {shown(one['size'])} is too small whatever it holds"
            yield f"partitions.{number}.size", told, f"{shown(fits)} is the least"
    total = sum(max(one["size"], fits) for one, fits in zip(given, least, strict=True)) + 2 * gpt.ALIGN
    if given and spec["size"] and spec["size"] < total:
        told = f"a disk of {shown(spec['size'])} is too small for these partitions, whatever they hold"
        yield "size", told, f"{shown(total)} is the least; or leave size out"


def _emptiest(one: Mapping[str, Any], sector: int) -> int:
    """The bytes that a partition cannot do without."""
    if one["type"] == "esp":
        return fat.least((), sector)
    plain = one["filesystem"] == "auto" and one["type"] in ("layers", "recovery", "persistent")
    return _LEAST_EXT4 if plain or one["filesystem"] == "ext4" else 0


def _stretched(sizes: Sequence[int], least: Sequence[int], last: int, total: int) -> list[int]:
    """The last open partition takes what is left; where nothing is, the open ones do with what they need."""
    others = sum(sizes) - sizes[last]
    if total - others >= least[last]:
        return [*sizes[:last], total - others, *sizes[last + 1 :]]
    others = sum(least) - least[last]
    return [*least[:last], total - others, *least[last + 1 :]]


def shown(number: int) -> str:
    """A size as a recipe writes it."""
    return f"{number // MIB}M" if number % MIB == 0 else str(number)


def up(number: int) -> int:
    """The next whole MiB."""
    return number + -number % MIB
