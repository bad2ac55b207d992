"""zstd:chunked: a layer whose files can be had one by one, and which is plain zstd to whoever does not know.

The form is that of containers/storage (pkg/chunked), so podman's and CRI-O's partial pulls take it: each file's
content is a frame of its own, so that equal content is equal bytes; behind the last frame come, in frames that a
decoder skips, a table of contents (JSON: every entry, and where its frame lies), the tar without its contents
(tar-split, from which the client makes the very same tar again) and a footer that says where both are. What a
client believes are the layer's annotations in the manifest, which name the table by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from kairosbuild.core.digest import CHUNK, Blob
from kairosbuild.oci.header import padding
from kairosbuild.oci.parse import LIMITS, Raw, next_member

LEVEL = 3
NOTE = "io.github.containers.zstd-chunked."  # what the annotations begin with
_SKIP = struct.Struct("<II")  # magic and length of a frame that decoders skip (RFC 8878, 3.1.2)
_SKIPPED = 0x184D2A50
_FOOTER = struct.Struct("<7Q8s")
_MAGIC = b"GNUlInUx"
_CRFS = 1  # the kind of table
_LARGEST = 150 << 20  # bytes of a table; what others take
_TYPE = {
    b"0": "reg", b"\0": "reg", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo",
}  # fmt: skip


def compress(tar: Path, out: BinaryIO) -> tuple[Blob, dict[str, str]]:
    """Write this layer to `out` as zstd:chunked; what was written, and the annotations that it needs.

    A layer with a name that is not UTF-8 gets none: the table is JSON. It is whole zstd all the same.
    """
    packed = _Packed(out)
    table: list[dict[str, Any]] = []
    split = _Split()
    with tar.open("rb") as stream:
        for raw, head in _members(stream):
            packed.plain(head)
            split.segment(head)
            table.append({**_entry(raw), **_content(stream, raw, packed, split)})
        end = stream.read()
        packed.plain(end)
        split.segment(end)
    packed.flush()
    if not all(_is_text(entry["name"], entry.get("linkName", "")) for entry in table):
        return packed.blob, {}
    notes = _close(packed, table, split)
    return packed.blob, notes


def pieces(file: Path, notes: Mapping[str, str]) -> dict[str, int]:
    """The files of such a layer by their content's digest, and the bytes of their frames. Of another layer, nothing.

    Raises ValueError for a table that is none.
    """
    import zstandard

    if f"{NOTE}manifest-position" not in notes:
        return {}
    at, length, plain, _ = map(int, notes[f"{NOTE}manifest-position"].split(":"))
    with file.open("rb") as stream:
        stream.seek(at)
        toc = stream.read(length)
    if _sha256(toc) != notes.get(f"{NOTE}manifest-checksum") or plain > _LARGEST:
        raise ValueError("a table of contents that is not itself")
    entries = json.loads(zstandard.ZstdDecompressor().decompress(toc, max_output_size=plain))["entries"]
    return {one["digest"]: one["endOffset"] - one["offset"] for one in entries if one.get("digest")}


def _members(stream: BinaryIO) -> Iterator[tuple[Raw, bytes]]:
    """Each member, its content next in the stream, with the bytes before that: padding and headers."""
    begin, shared = 0, dict[str, bytes]()
    while (raw := next_member(stream, shared, LIMITS)) is not None:
        at = stream.tell()
        yield raw, os.pread(stream.fileno(), at - begin, begin)
        begin = stream.tell()
        stream.seek(padding(raw.size), os.SEEK_CUR)
    stream.seek(begin)


def _content(stream: BinaryIO, raw: Raw, packed: _Packed, split: _Split) -> dict[str, Any]:
    """A file's content as a frame; where that is and what it holds."""
    from fastcrc import crc64

    if not raw.size:
        split.file(raw, None)
        return {}
    packed.flush()
    start, sha, crc = packed.size, hashlib.sha256(), 0
    for number, piece in enumerate(_pieces(stream, raw.size)):
        sha.update(piece)
        crc = crc64.go_iso(piece, crc) if number else crc64.go_iso(piece)
        packed.part(piece, raw.size)
    packed.flush()
    split.file(raw, crc)
    return {"digest": f"sha256:{sha.hexdigest()}", "offset": start, "endOffset": packed.size}


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (piece := stream.read(min(CHUNK, size))):
        size -= len(piece)
        yield piece


def _entry(raw: Raw) -> dict[str, Any]:
    """What the table says of a member; a client holds it against the headers, so it says no less than they do."""
    said = {
        "linkName": _text(raw.link) if raw.flag in b"12" else "",
        "mode": raw.mode, "size": raw.size, "uid": raw.uid, "gid": raw.gid,
        "modtime": datetime.fromtimestamp(raw.mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "devMajor": raw.major, "devMinor": raw.minor,
        "xattrs": {name: base64.b64encode(value).decode() for name, value in raw.xattrs},
    }  # fmt: skip
    return {"type": _TYPE[raw.flag], "name": _text(raw.name), **{k: v for k, v in said.items() if v}}


def _close(packed: _Packed, table: list[dict[str, Any]], split: _Split) -> dict[str, str]:
    """The table, the tar without contents, the footer; the annotations that lead to them."""
    tar_split, tar_split_size = split.close()
    document = {"version": 1, "entries": table, "tarSplitDigest": _sha256(tar_split)}
    plain = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    toc = _compressor().compress(plain)
    at = packed.skipped(toc)
    split_at = packed.skipped(tar_split)
    packed.skipped(
        _FOOTER.pack(at, len(toc), len(plain), _CRFS, split_at, len(tar_split), tar_split_size, _MAGIC)
    )
    return {
        f"{NOTE}manifest-checksum": _sha256(toc),
        f"{NOTE}manifest-position": f"{at}:{len(toc)}:{len(plain)}:{_CRFS}",
        f"{NOTE}tarsplit-position": f"{split_at}:{len(tar_split)}:{tar_split_size}",
    }


class _Packed:
    """The layer as it is written: frames one after another."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._sha = hashlib.sha256()
        self._packer: Any = _compressor()
        self._frame: Any = None
        self._plain: list[bytes] = []
        self.size = 0

    @property
    def blob(self) -> Blob:
        """What was written."""
        return Blob(f"sha256:{self._sha.hexdigest()}", self.size)

    def plain(self, data: bytes) -> None:
        """Bytes of the tar that are no file's content; they wait for the next one, to be a frame together."""
        self._plain.append(data)

    def part(self, data: bytes, size: int) -> None:
        """Some of a file's content, `size` bytes in all."""
        if len(data) == size:
            self._write(self._packer.compress(data))
            return
        if self._frame is None:
            self._frame = self._packer.compressobj(size=size)
        self._write(self._frame.compress(data))

    def flush(self) -> None:
        """End the frame that is open."""
        if self._frame is not None:
            self._write(self._frame.flush())
            self._frame = None
        if self._plain:
            self._write(self._packer.compress(b"".join(self._plain)))
            self._plain = []

    def skipped(self, data: bytes) -> int:
        """A frame that decoders skip; where its content begins."""
        self._write(_SKIP.pack(_SKIPPED, len(data)))
        at = self.size
        self._write(data)
        return at

    def _write(self, data: bytes) -> None:
        self._sha.update(data)
        self._out.write(data)
        self.size += len(data)


class _Split:
    """The tar without contents: a line of JSON for each run of its own bytes, and for each file (vbatts/tar-split)."""

    def __init__(self) -> None:
        self._packer: Any = _compressor().compressobj()
        self._packed: list[bytes] = []
        self._number = self._size = 0

    def segment(self, data: bytes) -> None:
        """Bytes as they stand in the tar: padding and headers."""
        self._line({"type": 2, "payload": base64.b64encode(data).decode()})

    def file(self, raw: Raw, crc: int | None) -> None:
        """A member by name; `crc` is of its content, CRC-64 with ISO 3309's polynomial, None where it has none."""
        checksum = None if crc is None else base64.b64encode(crc.to_bytes(8, "big")).decode()
        size = {"size": raw.size} if raw.size else {}
        self._line({"type": 1, "name": _text(raw.name), **size, "payload": checksum})

    def close(self) -> tuple[bytes, int]:
        """Compressed, and how many bytes it was before."""
        self._packed.append(self._packer.flush())
        return b"".join(self._packed), self._size

    def _line(self, row: Mapping[str, Any]) -> None:
        data = json.dumps({**row, "position": self._number}, separators=(",", ":")).encode() + b"\n"
        self._packed.append(self._packer.compress(data))
        self._number += 1
        self._size += len(data)


def _compressor() -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=LEVEL)


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _is_text(*names: str) -> bool:
    return not any("\udc80" <= char <= "\udcff" for name in names if not name.isascii() for char in name)
