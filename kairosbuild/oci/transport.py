"""Layers on the wire: each method has one output, so that a transport can be made again and is the same."""

from __future__ import annotations

import hashlib
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from kairosbuild.core.digest import CHUNK, Blob
from kairosbuild.core.errors import InputError

Method = Literal["gzip", "zstd", "zstd:chunked", "none"]

_GZIP_LEVEL = 2  # of isal's 0 to 3
_ZSTD_LEVEL = 3
_ZSTD_WORKERS = 2  # any number of workers gives the same bytes, none gives others
_WINDOW = 1 << 27  # bytes of history a zstd frame may ask for
_XZ_MEMORY = 1 << 28  # bytes an xz stream may ask for
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}


def compress(src: Path, out: BinaryIO, method: Method) -> Blob:
    """Write the transport of this file to `out`, in bounded memory; return what was written."""
    sha, size = hashlib.sha256(), 0
    with src.open("rb") as stream:
        for chunk in _compressed(stream, src.stat().st_size, method):
            sha.update(chunk)
            size += len(chunk)
            out.write(chunk)
    return Blob("sha256:" + sha.hexdigest(), size)


def compressor_id(method: Method) -> str:
    """What made a transport, for its record: library, version, level, and a sign of its actual output.

    The sign is there because isal takes another code path on another processor, which may find other
    matches: two machines share a gzip transport only when they would have made the same.
    """
    if method == "none":
        return "none"
    if method == "zstd:chunked":
        return f"chunked 1 {compressor_id('zstd')}"
    import isal  # compressors are loaded when needed
    import zstandard

    sample = b"".join(b"%d,%d;" % (n * n % 8191, n % 37) for n in range(30_000))
    sign = hashlib.sha256(b"".join(_compressed(io.BytesIO(sample), len(sample), method))).hexdigest()[:12]
    if method == "gzip":
        return f"gzip isal-{isal.__version__} level-{_GZIP_LEVEL} {sign}"
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return f"zstd libzstd-{version} level-{_ZSTD_LEVEL} {sign}"


def decompress(stream: BinaryIO) -> BinaryIO:
    """The plain bytes of a stream that is gzip, zstd, xz or not compressed, told by its first bytes.

    Reading raises InputError (`compressed`) when the compression is broken or wants too much memory. A zstd
    stream that ends early just ends: what is inside (a tar, a digest) must say whether it is whole.
    """
    head = _read_up_to(stream, 6)
    method = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "none")
    source = _Source(_chunks(head, stream))
    if method == "none":
        return cast(BinaryIO, io.BufferedReader(source, CHUNK))
    opened = {"gzip": _gunzip, "zstd": _unzstd, "xz": _unxz}[method](io.BufferedReader(source, CHUNK))
    return cast(BinaryIO, io.BufferedReader(_Source(_guarded(opened, method)), CHUNK))


def _compressed(stream: BinaryIO, size: int, method: Method) -> Iterator[bytes]:
    if method == "gzip":
        from isal import isal_zlib

        packer: Any = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    elif method == "zstd":
        import zstandard

        packer = zstandard.ZstdCompressor(
            level=_ZSTD_LEVEL, write_checksum=True, threads=_ZSTD_WORKERS
        ).compressobj(size=size)
    else:
        yield from iter(lambda: stream.read(CHUNK), b"")
        return
    while chunk := stream.read(CHUNK):
        if packed := packer.compress(chunk):
            yield packed
    yield packer.flush()


def _gunzip(source: Any) -> Iterator[bytes]:
    from isal import igzip

    open_gzip: Any = igzip.IGzipFile  # its constructor has no types
    with open_gzip(fileobj=source, mode="rb") as opened:
        yield from iter(lambda: opened.read(CHUNK), b"")


def _unzstd(source: Any) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    with unpacker.stream_reader(source, read_across_frames=True) as opened:
        yield from iter(lambda: opened.read(CHUNK), b"")


def _unxz(source: Any) -> Iterator[bytes]:
    """Stream after stream, each output bounded; the standard LZMAFile knows no memory limit."""
    data = source.read(CHUNK)
    while data:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        while not unpacker.eof:
            yield unpacker.decompress(data, CHUNK)
            data = source.read(CHUNK) if unpacker.needs_input else b""
            if unpacker.needs_input and not data and not unpacker.eof:
                raise EOFError
        data = (unpacker.unused_data or source.read(CHUNK)).lstrip(b"\0") or source.read(CHUNK).lstrip(b"\0")


def _guarded(chunks: Iterator[bytes], method: str) -> Iterator[bytes]:
    """The same chunks; whatever the library raises becomes one error of ours."""
    try:
        yield from chunks
    except InputError:
        raise
    except Exception as error:  # zlib.error, LZMAError, ZstdError, EOFError, BadGzipFile: no common parent
        why = error or "it ends early"
        raise InputError(f"the {method} stream is broken: {why}", reason="compressed") from None


def _chunks(head: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield head
    yield from iter(lambda: stream.read(CHUNK), b"")


def _read_up_to(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


class _Source(io.RawIOBase):
    """Chunks as a raw stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
