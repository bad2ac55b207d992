"""The index of a layer: path → entry, where its header begins, where its content does.

It makes a layer something to compute with: merging, listing and comparing need no tar to be read.
The bytes are JSON in one form only (sorted as the tar is, no space, ASCII escapes because a name need
not be UTF-8), so an index has a digest as its layer has.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kairosbuild.core.errors import InputError
from kairosbuild.oci.entry import Entry, EntryType
from kairosbuild.oci.header import padding

SCHEMA = 1

Row = list[Any]
"""[path, letter, mode, uid, gid, size, mtime, offset, data, target or "major,minor"?, {xattr: base64}?]"""

_LETTER: dict[EntryType, str] = {
    "file": "f",
    "dir": "d",
    "symlink": "l",
    "hardlink": "h",
    "char": "c",
    "block": "b",
    "fifo": "p",
}
_quoted = json.encoder.encode_basestring_ascii
_TYPE = {letter: name for name, letter in _LETTER.items()}
_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=True, sort_keys=True, check_circular=False
).encode


@dataclass(frozen=True, slots=True)
class Place:
    """An entry and where it lies in the tar: header at `offset`, content at `data`, all over at `end`."""

    entry: Entry
    offset: int
    data: int

    @property
    def end(self) -> int:
        """The first byte after the padding."""
        return self.data + self.entry.size + padding(self.entry.size)


class Index:
    """What a layer holds, in the order of its tar. Entries are made when they are asked for."""

    __slots__ = ("_numbers", "rows")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._numbers: dict[str, int] | None = None

    @classmethod
    def loads(cls, data: bytes) -> Index:
        """Read an index. Raises InputError (`index-schema`) for anything that is not one."""
        try:
            document = json.loads(data)
            schema, rows = document["schema"], document["entries"]
        except (ValueError, KeyError, TypeError):
            raise InputError("these bytes are not the index of a layer", reason="index-schema") from None
        if schema != SCHEMA or not isinstance(rows, list):
            raise InputError(f"a layer's index has schema {schema!r}, not {SCHEMA}", reason="index-schema")
        return cls(rows)

    def dumps(self) -> bytes:
        """The bytes of this index."""
        return dumps(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Place]:
        return map(place, self.rows)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path()

    def __getitem__(self, path: str) -> Place:
        return place(self.rows[self._by_path()[path]])

    def get(self, path: str) -> Place | None:
        """The place of a path, None when the layer has no such entry."""
        number = self._by_path().get(path)
        return None if number is None else place(self.rows[number])

    def paths(self) -> Iterator[str]:
        """Every path, in the order of the tar."""
        return (row[0] for row in self.rows)

    def _by_path(self) -> dict[str, int]:
        if self._numbers is None:
            self._numbers = {row[0]: number for number, row in enumerate(self.rows)}
        return self._numbers


def dumps(rows: Sequence[Row]) -> bytes:
    """The bytes of an index with these rows."""
    return joined(map(_encode, rows))


def joined(lines: Iterable[str]) -> bytes:
    """The bytes of an index with these rows, each encoded already."""
    return f'{{"entries":[{",".join(lines)}],"schema":{SCHEMA}}}'.encode("ascii")


def line(entry: Entry, offset: int, data: int, mtime: int) -> str:
    """An entry and its place as an encoded row: texts by the thousand are nothing to the garbage collector."""
    e = entry
    if e.target or e.xattrs or e.type in ("char", "block"):
        return _encode(row(e, offset, data, mtime))
    return plain_line(e.path, _LETTER[e.type], e.mode, e.uid, e.gid, e.size, mtime, offset, data)


def plain_line(path: str, letter: str, *numbers: int) -> str:
    """`line` for an entry with neither target nor attributes, as the columns of its row."""
    mode, uid, gid, size, mtime, offset, data = numbers
    return f'[{_quoted(path)},"{letter}",{mode},{uid},{gid},{size},{mtime},{offset},{data}]'


def row(entry: Entry, offset: int, data: int, mtime: int | None = None) -> Row:
    """An entry and its place as a row, with another mtime if one is given."""
    e = entry
    time = e.mtime if mtime is None else mtime
    made: Row = [e.path, _LETTER[e.type], e.mode, e.uid, e.gid, e.size, time, offset, data]
    if e.type in ("char", "block"):
        made.append(f"{e.major},{e.minor}")
    elif e.target or e.xattrs:
        made.append(e.target)
    if e.xattrs:
        made.append({name: b64encode(value).decode() for name, value in e.xattrs})
    return made


def place(row: Row) -> Place:
    """A row as an entry and its place."""
    path, letter, mode, uid, gid, size, mtime, offset, data, *rest = row
    target = rest[0] if rest else ""
    xattrs = tuple((name, b64decode(value)) for name, value in rest[1].items()) if len(rest) > 1 else ()
    major = minor = 0
    if letter in "cb":
        major, minor = map(int, target.split(","))
        target = ""
    entry = Entry(path, _TYPE[letter], mode, uid, gid, size, target, xattrs, mtime, major, minor)
    return Place(entry, offset, data)
