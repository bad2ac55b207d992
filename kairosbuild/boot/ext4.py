"""An ext4 filesystem of a few large files in its root, computed instead of made: the `layers` filesystem.

`mke2fs -d` makes the same by copying everything once more, in a sandbox. Here the places of the files are
the result, and whoever writes the disk puts the bytes there. All metadata lies at the front, each file is
as contiguous as the backup superblocks let it be. A kernel may write it, e2fsck repair it, as any other.
<https://www.kernel.org/doc/html/latest/filesystems/ext4/>
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kairosbuild.core.errors import KbuildError

BLOCK = 4096
PER_GROUP = 8 * BLOCK  # blocks of a group: what one bitmap block counts
INODES = 128  # inodes of a group
_INODE = 256
_TABLE = INODES * _INODE // BLOCK  # blocks of a group's inode table
_JOURNAL = 1024  # blocks; the least there is
_EXTENT_MAX = 32768  # blocks
_ROOT, _JOURNAL_INODE, _LOST, _FIRST = 2, 8, 11, 12
_HAS_JOURNAL, _EXT_ATTR = 0x4, 0x8
_FILETYPE, _EXTENTS, _FLEX_BG = 0x2, 0x40, 0x200
_SPARSE_SUPER, _LARGE_FILE, _EXTRA_ISIZE = 0x1, 0x2, 0x40
_DIR, _FILE = 0o040000, 0o100000

Run = tuple[int, int]
"""First block, and how many."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Size in bytes, label (16 bytes at most), identity, and every timestamp."""

    size: int
    label: str
    identity: uuid.UUID
    epoch: int = 0


@dataclass(slots=True)
class _Space:
    """Blocks handed out in rising order, those that are taken skipped."""

    blocks: int
    taken: list[Run]
    at: int = 0
    given: list[Run] = field(default_factory=list)

    def take(self, count: int) -> list[Run]:
        runs: list[Run] = []
        while count:
            self._skip()
            limit = min((start for start, _ in self.taken if start > self.at), default=self.blocks)
            got = min(count, limit - self.at, _EXTENT_MAX)
            if got <= 0:
                raise KbuildError(
                    "the layers do not fit their filesystem",
                    reason="disk-size",
                    hint="raise the disk's size, or leave it out",
                )
            runs.append((self.at, got))
            self.at += got
            count -= got
        self.given += runs
        return runs

    def _skip(self) -> None:
        for start, length in self.taken:
            if start <= self.at < start + length:
                self.at = start + length


@dataclass(frozen=True, slots=True)
class Layout:
    """The filesystem's own bytes as (offset, bytes), and where each file's bytes go as (offset, length)."""

    metadata: tuple[tuple[int, bytes], ...]
    files: Mapping[str, tuple[Run, ...]]


def need(sizes: Sequence[int]) -> int:
    """Bytes of a filesystem that holds files of these sizes, metadata included."""
    data = sum(-(-size // BLOCK) + 1 for size in sizes) + _JOURNAL + 16
    groups = -(-data // (PER_GROUP - 64)) + 1
    return (data + groups * (2 + _TABLE + 2) + 2) * BLOCK


def layout(volume: Volume, files: Mapping[str, int]) -> Layout:
    """Compute it for these files (name → size in bytes). Raises `disk-size` when they do not fit."""
    return _Build(volume, dict(sorted(files.items()))).layout()


class _Build:
    def __init__(self, volume: Volume, files: dict[str, int]) -> None:
        self.volume = volume
        self.blocks = volume.size // BLOCK
        self.groups = -(-self.blocks // PER_GROUP)
        if self.blocks - (self.groups - 1) * PER_GROUP < 64:  # a last group too short for its own backup
            self.groups -= 1
            self.blocks = self.groups * PER_GROUP
        self.descriptors = -(-self.groups * 32 // BLOCK)
        self.files = files
        self.bitmaps = 1 + self.descriptors  # block of the first block bitmap
        self.tables = self.bitmaps + 2 * self.groups
        backups = [
            (group * PER_GROUP, 1 + self.descriptors) for group in range(1, self.groups) if _has_super(group)
        ]
        self.space = _Space(self.blocks, sorted([(0, self.tables + _TABLE * self.groups), *backups]))

    def layout(self) -> Layout:
        if _FIRST + len(self.files) > INODES * self.groups:
            raise KbuildError("too many layers for one filesystem", reason="disk-size")
        journal = self.space.take(_JOURNAL)
        numbers = {name: _FIRST + order for order, name in enumerate(self.files)}
        root = _directory(_ROOT, _ROOT, [("lost+found", _LOST, 2), *((n, i, 1) for n, i in numbers.items())])
        lost = _directory(_LOST, _ROOT, [])
        root_runs = self.space.take(len(root) // BLOCK)
        lost_runs = self.space.take(len(lost) // BLOCK)
        extra: list[tuple[int, bytes]] = []
        inodes = {
            _ROOT: self._inode(_DIR | 0o755, len(root), root_runs, extra, links=3),
            _JOURNAL_INODE: self._inode(_FILE | 0o600, _JOURNAL * BLOCK, journal, extra),
            _LOST: self._inode(_DIR | 0o700, len(lost), lost_runs, extra, links=2),
        }
        placed: dict[str, tuple[Run, ...]] = {}
        for name, size in self.files.items():
            runs = self.space.take(-(-size // BLOCK))
            inodes[numbers[name]] = self._inode(_FILE | 0o444, size, runs, extra)
            placed[name] = tuple(_bytes_of(runs, size))
        data = [
            *_spread(root, root_runs),
            *_spread(lost, lost_runs),
            (journal[0][0] * BLOCK, self._journal()),
        ]
        own = self._own(inodes, journal)
        return Layout(tuple(sorted([*own, *data, *extra])), placed)

    def _own(self, inodes: Mapping[int, bytes], journal: Sequence[Run]) -> Iterator[tuple[int, bytes]]:
        """Superblocks, descriptors, bitmaps and tables."""
        used = self._bitmap()
        free = [PER_GROUP - _ones(used[group * BLOCK : (group + 1) * BLOCK]) for group in range(self.groups)]
        last = max(inodes)
        table = self._descriptors(free, last)
        for group in range(self.groups):
            if group == 0 or _has_super(group):
                at = group * PER_GROUP * BLOCK
                shift = 1024 if group == 0 else 0
                yield at + shift, self._superblock(group, sum(free), last, inodes[_JOURNAL_INODE])
                yield at + BLOCK, table
        yield self.bitmaps * BLOCK, used
        yield (
            (self.bitmaps + self.groups) * BLOCK,
            b"".join(
                _bits(max(0, min(INODES, last - group * INODES)), INODES) for group in range(self.groups)
            ),
        )
        by_number = b"".join(inodes.get(number, bytes(_INODE)) for number in range(1, last + 1))
        yield self.tables * BLOCK, by_number

    def _bitmap(self) -> bytes:
        """One bit a block, over all groups; what lies beyond the end counts as used."""
        bits = bytearray(self.groups * BLOCK)
        for start, count in (
            *self.space.taken,
            *self.space.given,
            (self.blocks, self.groups * PER_GROUP - self.blocks),
        ):
            _set(bits, start, count)
        return bytes(bits)

    def _descriptors(self, free: Sequence[int], last: int) -> bytes:
        found = []
        for group in range(self.groups):
            inodes = INODES - max(0, min(INODES, last - group * INODES))
            folders = 2 if group == 0 else 0
            found.append(
                struct.pack(
                    "<IIIHHHHIHHHH",
                    self.bitmaps + group,
                    self.bitmaps + self.groups + group,
                    self.tables + group * _TABLE,
                    free[group],
                    inodes,
                    folders,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                )
            )
        return b"".join(found).ljust(self.descriptors * BLOCK, b"\0")

    def _superblock(self, group: int, free: int, last: int, journal: bytes) -> bytes:
        volume, total = self.volume, INODES * self.groups
        flex = max(1, (self.groups - 1).bit_length())
        out = bytearray(1024)
        struct.pack_into(
            "<IIIIIIIIIIIIIHHHHHHIIIIHH",
            out,
            0,
            total,
            self.blocks,
            0,
            free,
            total - last,
            0,
            2,
            2,
            PER_GROUP,
            PER_GROUP,
            INODES,
            0,
            volume.epoch,
            0,
            0xFFFF,
            0xEF53,
            1,
            1,
            0,
            volume.epoch,
            0,
            0,
            1,
            0,
            0,
        )
        struct.pack_into(
            "<IHHIII16s16s",
            out,
            84,
            11,
            _INODE,
            group,
            _HAS_JOURNAL | _EXT_ATTR,
            _FILETYPE | _EXTENTS | _FLEX_BG,
            _SPARSE_SUPER | _LARGE_FILE | _EXTRA_ISIZE,
            volume.identity.bytes,
            volume.label.encode(),
        )
        struct.pack_into("<I", out, 0xE0, _JOURNAL_INODE)
        struct.pack_into("<16sBB", out, 0xEC, uuid.uuid5(volume.identity, "hash seed").bytes, 1, 1)
        struct.pack_into("<II", out, 0x100, 0xC, 0)  # user_xattr and acl by default
        struct.pack_into("<I", out, 0x108, volume.epoch)  # made
        out[0x10C : 0x10C + 60] = journal[40:100]  # the journal's blocks, once more
        struct.pack_into("<II", out, 0x10C + 60, 0, _JOURNAL * BLOCK)
        struct.pack_into("<HHI", out, 0x15C, 32, 32, 1)  # extra isize; signed hashes
        out[0x174] = flex
        return bytes(out)

    def _journal(self) -> bytes:
        """An empty journal's superblock, jbd2 version 2; its fields are big-endian."""
        head = struct.pack(
            ">IIIIIIIIIIII16sI", 0xC03B3998, 4, 0, BLOCK, _JOURNAL, 1, 1, 0, 0, 0, 0, 0, bytes(16), 1
        )
        return head.ljust(1024, b"\0")

    def _inode(
        self, mode: int, size: int, runs: Sequence[Run], extra: list[tuple[int, bytes]], links: int = 1
    ) -> bytes:
        tree, leaves = self._extents(runs, extra)
        blocks = sum(count for _, count in runs) + leaves
        when = self.volume.epoch
        head = struct.pack(
            "<HHIIIIIHHIII60sIIII",
            mode,
            0,
            size & 0xFFFFFFFF,
            when,
            when,
            when,
            0,
            0,
            links,
            blocks * (BLOCK // 512),
            0x80000,
            0,
            tree,
            0,
            0,
            size >> 32,
            0,
        )
        return (head + bytes(12) + struct.pack("<HHIIIIII", 32, 0, 0, 0, 0, when, 0, 0)).ljust(_INODE, b"\0")

    def _extents(self, runs: Sequence[Run], extra: list[tuple[int, bytes]]) -> tuple[bytes, int]:
        """The 60 bytes of an inode's extent tree; a leaf block of its own beyond four extents."""
        entries, logical = [], 0
        for start, count in runs:
            entries.append(struct.pack("<IHHI", logical, count, start >> 32, start & 0xFFFFFFFF))
            logical += count
        if len(entries) <= 4:
            return (_extent_header(len(entries), 4, 0) + b"".join(entries)).ljust(60, b"\0"), 0
        most = (BLOCK - 12) // 12
        if len(entries) > most:
            raise KbuildError("a layer is too large for the layers filesystem", reason="disk-size")
        ((leaf, _),) = self.space.take(1)
        extra.append(
            (leaf * BLOCK, (_extent_header(len(entries), most, 0) + b"".join(entries)).ljust(BLOCK, b"\0"))
        )
        index = struct.pack("<IIHH", 0, leaf & 0xFFFFFFFF, leaf >> 32, 0)
        return (_extent_header(1, 4, 1) + index).ljust(60, b"\0"), 1


def _extent_header(entries: int, most: int, depth: int) -> bytes:
    return struct.pack("<HHHHI", 0xF30A, entries, most, depth, 0)


def _directory(number: int, parent: int, names: Sequence[tuple[str, int, int]]) -> bytes:
    """Whole blocks of entries (name, inode, type); the last entry of a block reaches to its end."""
    blocks: list[list[tuple[bytes, int, int]]] = [[]]
    room = BLOCK
    for name, inode, kind in ((".", number, 2), ("..", parent, 2), *names):
        length = 8 + -(-len(name.encode()) // 4) * 4
        if length > room:
            blocks.append([])
            room = BLOCK
        room -= length
        blocks[-1].append((name.encode(), inode, kind))
    return b"".join(map(_directory_block, blocks))


def _directory_block(entries: Sequence[tuple[bytes, int, int]]) -> bytes:
    parts, room = [], BLOCK
    for order, (name, inode, kind) in enumerate(entries, 1):
        length = room if order == len(entries) else 8 + -(-len(name) // 4) * 4
        parts.append(struct.pack("<IHBB", inode, length, len(name), kind) + name.ljust(length - 8, b"\0"))
        room -= length
    return b"".join(parts)


def _has_super(group: int) -> bool:
    """Whether a group holds a backup: 1 and the powers of 3, 5 and 7."""
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return group == 1


def _bytes_of(runs: Sequence[Run], size: int) -> Iterator[Run]:
    for start, count in runs:
        yield start * BLOCK, min(count * BLOCK, size)
        size -= count * BLOCK


def _spread(data: bytes, runs: Sequence[Run]) -> Iterator[tuple[int, bytes]]:
    for start, count in runs:
        yield start * BLOCK, data[: count * BLOCK]
        data = data[count * BLOCK :]


def _bits(ones: int, of: int) -> bytes:
    """A bitmap block: the first `ones` of `of` bits, and everything behind them, set."""
    bits = bytearray(BLOCK)
    _set(bits, 0, ones)
    _set(bits, of, 8 * BLOCK - of)
    return bytes(bits)


def _set(bits: bytearray, start: int, count: int) -> None:
    end = start + count
    while start < end and start % 8:
        bits[start // 8] |= 1 << start % 8
        start += 1
    whole = (end - start) // 8
    if whole > 0:
        bits[start // 8 : start // 8 + whole] = b"\xff" * whole
        start += whole * 8
    while start < end:
        bits[start // 8] |= 1 << start % 8
        start += 1


def _ones(bits: bytes) -> int:
    return int.from_bytes(bits, "little").bit_count()
