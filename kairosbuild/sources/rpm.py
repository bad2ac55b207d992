"""An RPM package (format 4): a lead, a signature header, a header, and a compressed cpio archive.

<https://rpm-software-management.github.io/rpm/manual/format_v4.html>. The header holds the digest of the
payload and is what a distribution signs, so that a signature over the header is one over all.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from kairosbuild.core.digest import CHUNK
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.oci.entry import Entry, EntryType, check_path
from kairosbuild.oci.layer import Item
from kairosbuild.oci.parse import read_exactly
from kairosbuild.oci.transport import decompress
from kairosbuild.sources.deb import merged
from kairosbuild.sources.spool import Keep, as_tree, spooled

_LEAD, _MAGIC, _LIMIT = b"\xed\xab\xee\xdb", b"\x8e\xad\xe8\x01", 256 << 20
_NAME, _VERSION, _RELEASE, _EPOCH = 1000, 1001, 1002, 1003
_PAYLOAD_DIGEST, _PAYLOAD_ALGORITHM = 5092, 5093
_SIGNATURES = (278, 268, 267)  # OpenPGP (base64 each), RSA, DSA; all over the header
_SHA256 = 8  # of OpenPGP's algorithms
_SIZE = {2: 1, 3: 2, 4: 4, 5: 8}
_TYPES: dict[int, EntryType] = {0o100000: "file", 0o040000: "dir", 0o120000: "symlink"}


@dataclass(frozen=True, slots=True)
class Header:
    """Values by tag, and the bytes they were read from."""

    values: dict[int, Any]
    data: bytes

    def text(self, tag: int) -> str:
        """A value that is one string; "" without it."""
        return str(self.values.get(tag, ""))


@dataclass(frozen=True, slots=True)
class Rpm:
    """What a package says of itself, and where in its file the payload begins."""

    signature: Header
    header: Header
    payload: int

    @property
    def evr(self) -> tuple[str, str, str]:
        """Epoch, version and release."""
        epoch = self.header.values.get(_EPOCH)
        return (
            str(epoch[0]) if epoch else "0",
            self.header.text(_VERSION),
            self.header.text(_RELEASE),
        )

    @property
    def name(self) -> str:
        """The package's name."""
        return self.header.text(_NAME)

    @property
    def signatures(self) -> list[bytes]:
        """The signatures over the header, each as OpenPGP has it."""
        found: list[bytes] = []
        for tag in _SIGNATURES:
            value = self.signature.values.get(tag)
            if isinstance(value, list):
                found += [base64.b64decode(one) for one in value]
            elif value:
                found.append(value)
        return found


def read(file: Path) -> Rpm:
    """Both headers. Raises InputError (`rpm-format`)."""
    with file.open("rb") as stream:
        if stream.read(96)[:4] != _LEAD:
            raise _broken(file)
        try:
            signature = _header(stream)
            stream.read(-len(signature.data) % 8)
            return Rpm(signature, _header(stream), stream.tell())
        except (ValueError, IndexError, struct.error):
            raise _broken(file) from None


def verify(file: Path, certificates: Sequence[bytes], what: str) -> Rpm:
    """Refuse a package whose header no known key signed, or whose payload is not what the header says.

    `certificates` are OpenPGP certificates, armored or not. Raises HostError (`bad-signature`).
    """
    from kairosbuild.sources.openpgp import signed_by

    rpm = read(file)
    if not rpm.signatures:
        raise HostError(
            f"{what} is not signed",
            reason="bad-signature",
            hint="a distribution signs every package it ships",
        )
    signed_by(rpm.header.data, rpm.signatures, what, certificates)
    digests, algorithm = rpm.header.values.get(_PAYLOAD_DIGEST), rpm.header.values.get(_PAYLOAD_ALGORITHM)
    if not digests or not algorithm or algorithm[0] != _SHA256 or _payload_digest(file, rpm) != digests[0]:
        raise HostError(f"{what} does not hold what its signed header says", reason="bad-signature")
    return rpm


def unpack(rpms: Iterable[Path], spool: BinaryIO, keep: Keep = lambda path: True) -> list[Item]:
    """The files of these packages as one tree over merged /usr, root's; no script is run.

    Contents go to `spool` (an open real file, which the items refer to).
    """
    return as_tree(chain.from_iterable(spooled(members(file), spool, keep) for file in rpms), spool)


def members(file: Path) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """What a package installs. Owners are root: names of users mean nothing outside the root they are in.

    A file's content must be read before going on. Raises InputError (`rpm-format`).
    """
    rpm = read(file)
    with file.open("rb") as stream:
        stream.seek(rpm.payload)
        yield from _cpio(decompress(stream), file)


def _cpio(stream: BinaryIO, file: Path) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """The members of a cpio archive (newc); of files that are one by several names, the last has the content."""
    linked: dict[int, list[str]] = {}
    while True:
        head = read_exactly(stream, 110)
        if head[:6] != b"070701":
            raise _broken(file)
        inode, mode, _, _, links, mtime, size, *_, length, _ = (
            int(head[at : at + 8], 16) for at in range(6, 110, 8)
        )
        name = read_exactly(stream, length + -(110 + length) % 4)[: length - 1].decode()
        if name == "TRAILER!!!":
            return
        path, kind = name.removeprefix("./").strip("/"), _TYPES.get(mode & 0o170000)
        if not path:
            continue
        if kind is None:
            raise InputError(f"{file.name} brings a device: {path}", reason="rpm-format")
        check_path(path)
        path = merged(path, folder=kind == "dir")
        content = _Content(stream, size)
        if kind == "file" and links > 1 and not size:
            linked.setdefault(inode, []).append(path)
        elif kind == "file":
            yield Entry(path, kind, mode & 0o7777, size=size, mtime=mtime), content  # type: ignore[misc]
            for other in linked.pop(inode, ()):
                yield Entry(other, "hardlink", mode & 0o7777, target=path, mtime=mtime), None
        elif kind == "symlink":
            yield Entry(path, kind, 0o777, target=content.read().decode(), mtime=mtime), None
        else:
            yield Entry(path, kind, mode & 0o7777, mtime=mtime), None
        content.skip()
        read_exactly(stream, -size % 4)


class _Content:
    """The next bytes of a stream, and no more than these."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        data = read_exactly(self._stream, count)
        self._left -= len(data)
        return data

    def skip(self) -> None:
        while self._left:
            self.read(CHUNK)


def _header(stream: BinaryIO) -> Header:
    start = read_exactly(stream, 16)
    if start[:4] != _MAGIC:
        raise ValueError
    count, size = struct.unpack(">II", start[8:])
    if count * 16 + size > _LIMIT:
        raise ValueError
    index, store = read_exactly(stream, count * 16), read_exactly(stream, size)
    values = {}
    for at in range(0, len(index), 16):
        tag, kind, offset, number = struct.unpack(">IIII", index[at : at + 16])
        values[tag] = _value(store, kind, offset, number)
    return Header(values, start + index + store)


def _value(store: bytes, kind: int, offset: int, number: int) -> Any:
    if kind in _SIZE:
        width = _SIZE[kind]
        return [
            int.from_bytes(store[at : at + width]) for at in range(offset, offset + width * number, width)
        ]
    if kind == 7:
        return store[offset : offset + number]
    strings = store[offset:].split(b"\0", number)[:number]
    texts = [one.decode("utf-8", "replace") for one in strings]
    return texts[0] if kind == 6 else texts


def _payload_digest(file: Path, rpm: Rpm) -> str:
    with file.open("rb") as stream:
        stream.seek(rpm.payload)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _broken(file: Path) -> InputError:
    return InputError(f"{file.name} is no RPM package, or is damaged", reason="rpm-format")
