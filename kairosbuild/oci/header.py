"""The 512-byte ustar header of an entry, with a PAX header before it only where ustar cannot say it.

POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header". One entry has one encoding:
numeric owners, empty names of user and group, no times but mtime, records sorted by keyword.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import adler32

from kairosbuild.oci.entry import Entry

BLOCK = 512
END = bytes(2 * BLOCK)

_FLAG = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777


def padding(size: int) -> int:
    """How many zero bytes follow this much content."""
    return -size % BLOCK


def encode(entry: Entry, mtime: int | None = None) -> bytes:
    """The header blocks of an entry, with another mtime if one is given; content and padding follow them."""
    mtime = entry.mtime if mtime is None else mtime
    records: dict[bytes, bytes] = {}
    name = entry.path.encode("utf-8", "surrogateescape")
    if entry.type == "dir":
        name += b"/"
    prefix = b""
    if len(name) > 100:
        name, prefix = _split(name, records)
    link = entry.target.encode("utf-8", "surrogateescape") if entry.target else b""
    if len(link) > 100:
        records[b"linkpath"], link = link, link[:100]
    size, uid, gid = entry.size, entry.uid, entry.gid
    if size > _MAX_SIZE or uid > _MAX_ID or gid > _MAX_ID or mtime > _MAX_SIZE:
        size, uid, gid, mtime = _overflow(entry, mtime, records)
    for key, value in entry.xattrs:
        records[b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape")] = value
    tail = _tail(_FLAG[entry.type], link, (entry.major, entry.minor), prefix)
    header = _ustar(name, _owner(entry.mode, uid, gid), size, mtime, tail)
    return _pax(records) + header if records else header


def encode_file(path: str, mode: int, uid: int, gid: int, size: int, mtime: int) -> bytes:
    """`encode` for a file without attributes; most members of a layer are."""
    name = path.encode("utf-8", "surrogateescape")
    if len(name) > 100 or size > _MAX_SIZE or uid > _MAX_ID or gid > _MAX_ID or mtime > _MAX_SIZE:
        return encode(Entry(path, "file", mode, uid, gid, size, mtime=mtime))
    return _ustar(name, _owner(mode, uid, gid), size, mtime, _FILE_TAIL)


def _ustar(name: bytes, owner: bytes, size: int, mtime: int, tail: bytes) -> bytes:
    head = b"%b%b%011o\0%011o\0" % (name.ljust(100, b"\0"), owner, size, mtime)
    return b"%b%06o\0 %b" % (head, _sum(head + b"        " + tail), tail)  # its own field counts as spaces


def _sum(header: bytes) -> int:
    """The sum of the bytes; of ASCII it stays below the modulus of Adler-32, whose low half it then is (+ 1)."""
    return (adler32(header) & 0xFFFF) - 1 if header.isascii() else sum(header)


@lru_cache(4096)
def _owner(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode & 0o7777, uid, gid)


@lru_cache(4096)
def _tail(flag: bytes, link: bytes, devices: tuple[int, int], prefix: bytes) -> bytes:
    """From the type flag to the end, the names of user and group empty."""
    text = flag + link.ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"%07o\0%07o\0" % devices
    return text + prefix.ljust(167, b"\0")


_FILE_TAIL = _tail(_FLAG["file"], b"", (0, 0), b"")


def _split(name: bytes, records: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """A long name as name and prefix, cut at the first slash that fits; as a PAX record when none does."""
    cut = name.find(b"/", len(name) - 101, len(name) - 1)
    if 0 < cut <= 155:
        return name[cut + 1 :], name[:cut]
    records[b"path"] = name
    return name[:100], b""


def _overflow(entry: Entry, mtime: int, records: dict[bytes, bytes]) -> tuple[int, int, int, int]:
    fitting = []
    for key, value, limit in (
        (b"size", entry.size, _MAX_SIZE),
        (b"uid", entry.uid, _MAX_ID),
        (b"gid", entry.gid, _MAX_ID),
        (b"mtime", mtime, _MAX_SIZE),
    ):
        if value > limit:
            records[key] = b"%d" % value
        fitting.append(0 if value > limit else value)
    return fitting[0], fitting[1], fitting[2], fitting[3]


def _pax(records: dict[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    header = _ustar(b"PaxHeaders/entry", _owner(0o644, 0, 0), len(body), 0, _tail(b"x", b"", (0, 0), b""))
    return header + body + bytes(padding(len(body)))


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
