"""Foreign tars, read with distrust: every member checked before anyone sees it.

What is refused, and why, is a `reason`: `tar-truncated`, `tar-checksum`, `tar-number`, `tar-pax`,
`tar-sparse`, `tar-type`, `tar-path` (absolute, `..`, NUL, too long, inside what is no folder),
`tar-link` (a hard link out of the archive's root), `tar-device`, `tar-owner`, `tar-limit`,
`tar-trailing`; `compressed` for a broken compression. Where a *symbolic* link points is no concern:
absolute ones are usual in operating systems, and nothing here or in `extract` ever follows one.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from kairosbuild.core.digest import CHUNK
from kairosbuild.oci.entry import Entry, EntryType, check_path, is_whiteout, keeps_xattr
from kairosbuild.oci.header import padding
from kairosbuild.oci.layer import Item, Slice, write_layer
from kairosbuild.oci.parse import LIMITS, Limits, Raw, next_member, read_exactly, refuse

_TYPES: dict[bytes, EntryType] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}
_LATEST = (1 << 33) - 1  # seconds; what a header holds without PAX
_NOBODY = (1 << 32) - 1  # the id that means none


def read_tar(stream: BinaryIO, *, limits: Limits = LIMITS) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """The members of an uncompressed tar, in its own order; a file's content must be read before going on.

    The root's own member ("./") is left out. Device nodes pass only beneath `dev/`. Stops at the end
    mark, and refuses an archive that has none or has something behind it.
    """
    shared: dict[str, bytes] = {}
    total = members = 0
    while (raw := next_member(stream, shared, limits)) is not None:
        entry = _entry(raw, limits)
        members += 1
        total += (entry.size if entry else 0) + 512
        if members > limits.members or total > limits.total:
            raise refuse("the archive holds more than is allowed", "tar-limit")
        if entry is None:
            continue
        if entry.type != "file":
            yield entry, None
            continue
        content = _Content(stream, entry.size)
        yield entry, cast(BinaryIO, content)
        content.skip()
        read_exactly(stream, padding(entry.size))
    while chunk := stream.read(CHUNK):
        if chunk.strip(b"\0"):
            raise refuse("something lies behind the end of the archive", "tar-trailing")


def normalise(
    stream: BinaryIO, out: BinaryIO, epoch: int, *, scratch: Path | None = None, limits: Limits = LIMITS
) -> bytes:
    """Write any tar, plain or compressed (gzip, zstd, xz), as a canonical layer; return its index.

    Of a path that comes twice the last wins, as when unpacking. Contents wait in an unnamed file in
    `scratch` (the system's temporary folder by default). Memory is bounded by the number of members.
    """
    from kairosbuild.oci.transport import decompress  # compressors are loaded when needed

    with tempfile.TemporaryFile(dir=scratch) as spool:
        last: dict[str, Item] = {}
        for entry, content in read_tar(decompress(stream), limits=limits):
            last.pop(entry.path, None)
            if content is None:
                last[entry.path] = (entry, None)
                continue
            last[entry.path] = (entry, Slice(spool.fileno(), spool.tell()))
            while chunk := content.read(CHUNK):
                spool.write(chunk)
        spool.flush()
        return write_layer(last.values(), out, epoch)


class _Content(io.RawIOBase):
    """The content of one member, which ends where the member does."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        if not wanted:
            return b""
        data = self._stream.read(wanted)
        if not data:
            raise refuse("the archive ends in the middle of a file", "tar-truncated")
        self._left -= len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def skip(self) -> None:
        while self.read(CHUNK):
            pass


def _entry(raw: Raw, limits: Limits) -> Entry | None:
    kind = _TYPES.get(raw.flag)
    if kind is None:
        raise refuse(f"a member has the type {raw.flag!r}", "tar-type")
    if kind == "file" and raw.flag != b"7" and raw.name.endswith(b"/"):
        kind = "dir"  # how V7 told a folder
    path = _path(raw.name, limits)
    if not path:
        if kind != "dir":
            raise refuse("the archive's root is a member that is no folder", "tar-path")
        return None
    if not 0 <= raw.size <= limits.member:
        raise refuse(f"{path!r} says that it has {raw.size} bytes", "tar-limit")
    if not (0 <= raw.uid < _NOBODY and 0 <= raw.gid < _NOBODY):
        raise refuse(f"{path!r} belongs to {raw.uid}:{raw.gid}", "tar-owner")
    if kind != "file" and is_whiteout(path):
        raise refuse(f"the whiteout {path!r} is no file", "tar-type")
    if kind in ("char", "block"):
        _check_device(path, raw)
    return Entry(
        path,
        kind,
        raw.mode & 0o7777,
        raw.uid,
        raw.gid,
        raw.size if kind == "file" else 0,
        _target(path, kind, raw.link, limits),
        tuple(pair for pair in raw.xattrs if keeps_xattr(pair[0])) if kind != "hardlink" else (),
        min(max(0, raw.mtime), _LATEST),
        raw.major,
        raw.minor,
    )


def _path(name: bytes, limits: Limits) -> str:
    """The path in an entry's form; "" for the root."""
    shown = name[:200]
    if b"\0" in name:
        raise refuse(f"the name {shown!r} holds a NUL", "tar-path")
    if name.startswith(b"/"):
        raise refuse(f"the name {shown!r} is absolute", "tar-path")
    if not name:
        raise refuse("a member has no name", "tar-path")
    names = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in names:
        raise refuse(f"the name {shown!r} leads out of its folder", "tar-path")
    if len(names) > limits.depth:
        raise refuse(f"the name {shown!r} is {len(names)} folders deep", "tar-limit")
    path = b"/".join(names).decode("utf-8", "surrogateescape")
    if path:
        check_path(path)
    return path


def _target(path: str, kind: EntryType, link: bytes, limits: Limits) -> str:
    if kind == "symlink":
        if not link or b"\0" in link or len(link) >= 4096:
            raise refuse(f"the link {path!r} points to {link[:200]!r}", "tar-link")
        return link.decode("utf-8", "surrogateescape")
    if kind != "hardlink":
        return ""
    if not link or b"\0" in link or link.startswith(b"/") or b".." in link.split(b"/"):
        raise refuse(f"the hard link {path!r} names {link[:200]!r}, out of the root", "tar-link")
    target = _path(link, limits)
    if not target or target == path:
        raise refuse(f"the hard link {path!r} names {link[:200]!r}", "tar-link")
    return target


def _check_device(path: str, raw: Raw) -> None:
    if not path.startswith("dev/"):
        raise refuse(f"the device node {path!r} is not beneath dev/", "tar-device")
    if not (0 <= raw.major < 1 << 12 and 0 <= raw.minor < 1 << 20) or raw.major == raw.minor == 0:
        raise refuse(f"the device node {path!r} has the numbers {raw.major}:{raw.minor}", "tar-device")
