"""Alpine's repositories: a signed index, and packages whose checksums it has. See apk-package(5), format 2.

An index is two gzip streams: a tar with the signature, then what is signed. A package is three: signature,
control (`.PKGINFO`, scripts), data. The index knows the SHA-1 of a package's control, the control the SHA-256 of
the data. So `verify` goes that way down once, and what is pinned from there on is the SHA-256 of the whole file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from kairosbuild.core.errors import HostError, InputError, nearest
from kairosbuild.oci.layer import Item
from kairosbuild.sources.spool import spooled

_SIGNATURE = re.compile(r"\.SIGN\.(RSA|RSA256)\.(.+)")
_TAMPERED = "the mirror, or something on the way to it, serves what its distribution did not sign"
_CONTROL = re.compile(r"\.[A-Za-z.-]+")


@dataclass(frozen=True, slots=True)
class Repository:
    """A part of a branch, such as `main` of `v3.23`."""

    branch: str
    name: str

    def json(self) -> dict[str, Any]:
        """The form this takes in a lock."""
        return {"mirror": "alpine", "branch": self.branch, "repository": self.name}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Repository:
        """Read that form."""
        return cls(value["branch"], value["repository"])

    def uri(self, arch: str, file: str) -> str:
        """Where a file of it is, relative to a mirror."""
        return f"alpine:{self.branch}/{self.name}/{arch}/{file}"


@dataclass(frozen=True, slots=True)
class Package:
    """What the index says of a package: the fields by their letters, and where its file is."""

    fields: Mapping[str, str]
    uri: str

    @property
    def name(self) -> str:
        """Its name."""
        return self.fields["P"]

    @property
    def version(self) -> str:
        """Its version with the release."""
        return self.fields["V"]

    @property
    def size(self) -> int:
        """How many bytes its file has."""
        return int(self.fields["S"])


class Index:
    """The packages of several repositories; of equal names and versions the first repository counts."""

    def __init__(self, packages: Sequence[Package]) -> None:
        self._by_name: dict[str, dict[str, Package]] = {}
        for package in packages:
            self._by_name.setdefault(package.name, {}).setdefault(package.version, package)

    def get(self, name: str, version: str = "") -> Package:
        """A package of this name. Raises InputError (`package-unknown`)."""
        found = self._by_name.get(name)
        if found is None:
            near = [known for known in self._by_name if known[:2] == name[:2]]
            hint = nearest(name, near) if near else ""
            raise InputError(f"there is no package {name!r}", reason="package-unknown", hint=hint)
        if version and version not in found:
            raise InputError(
                f"no repository has {name} in version {version}",
                reason="package-unknown",
                hint=f"there is {', '.join(found)}",
            )
        return found[version] if version else next(iter(found.values()))

    def gives(self, name: str) -> bool:
        """Whether a package is called, or provides, this."""
        return name in self._by_name or name in self._provided()

    @lru_cache(1)  # noqa: B019 - an index lives as long as its process
    def _provided(self) -> frozenset[str]:
        words = (
            word
            for packages in self._by_name.values()
            for p in packages.values()
            for word in p.fields.get("p", "").split()
        )
        return frozenset(re.split("[=<>~]", word)[0] for word in words)


def read_index(path: Path, keys: Mapping[str, bytes], uri: str) -> bytes:
    """The text of an index that one of these keys (by their file names) signed. Raises HostError (`bad-signature`)."""
    data = path.read_bytes()
    try:
        head, rest = _stream(data)
        members = _members(head)
    except (zlib.error, tarfile.TarError, ValueError):
        raise _unsigned(uri, "it is no index") from None
    _verify(members, rest, keys, uri)
    with tarfile.open(fileobj=io.BytesIO(zlib.decompress(rest, 31))) as tar:
        stream = tar.extractfile("APKINDEX")
        assert stream is not None
        return stream.read()


def packages_of(text: bytes, repository: Repository, arch: str) -> Iterator[Package]:
    """The packages of an index's text."""
    for stanza in text.decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.split(":", 1) for line in stanza.splitlines() if line[1:2] == ":")
        if "P" in fields and "V" in fields:
            yield Package(fields, repository.uri(arch, f"{fields['P']}-{fields['V']}.apk"))


def verify(path: Path, package: Package) -> None:
    """Whether this file is what the index says. Raises HostError (`wrong-digest`)."""
    with path.open("rb") as file:
        data = file.read()
    try:
        _, rest = _stream(data)
        control, files = _stream(rest)
        found = "Q1" + base64.b64encode(hashlib.sha1(rest[: len(rest) - len(files)]).digest()).decode()  # noqa: S324
        told = re.search(rb"(?m)^datahash = ([0-9a-f]{64})$", _members(control)[".PKGINFO"])
        right = bool(told) and hashlib.sha256(files).hexdigest().encode() == (told or [b"", b""])[1]
    except (zlib.error, tarfile.TarError, ValueError, KeyError):
        found, right = "", False
    if found != package.fields["C"] or not right:
        raise HostError(
            f"{package.uri} is not the file that the signed index says", reason="wrong-digest", hint=_TAMPERED
        )


def stanza(path: Path) -> str:
    """What the database of installed packages says of a package file, as far as a resolver reads it."""
    data = path.read_bytes()
    _, rest = _stream(data)
    control, files = _stream(rest)
    checksum = base64.b64encode(hashlib.sha1(rest[: len(rest) - len(files)]).digest()).decode()  # noqa: S324
    letters = {
        "pkgname": "P",
        "pkgver": "V",
        "arch": "A",
        "size": "I",
        "pkgdesc": "T",
        "license": "L",
        "url": "U",
    }
    lists = {"depend": "D", "provides": "p", "install_if": "i", "replaces": "r"}
    found: dict[str, str] = {"C": "Q1" + checksum}
    for line in _members(control)[".PKGINFO"].decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" = ")
        if name in letters:
            found[letters[name]] = value
        elif name in lists:
            found[lists[name]] = f"{found.get(lists[name], '')} {value}".strip()
    return "".join(f"{letter}:{value}\n" for letter, value in found.items())


def unpack(path: Path, spool: BinaryIO) -> Iterator[Item]:
    """The files of a package; contents go to `spool`."""
    from kairosbuild.oci.reader import read_tar
    from kairosbuild.oci.transport import decompress

    with path.open("rb") as stream:
        yield from spooled(read_tar(decompress(stream)), spool, lambda name: not _CONTROL.fullmatch(name))


def _stream(data: bytes) -> tuple[bytes, bytes]:
    """The first gzip stream, unpacked, and what follows it. Raises ValueError when it does not end."""
    engine = zlib.decompressobj(31)
    found = engine.decompress(data)
    if not engine.eof:
        raise ValueError("it breaks off")
    return found, engine.unused_data


def _members(tar: bytes) -> dict[str, bytes]:
    """Small files of a tar, whether it has an end or not."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return {one.name: stream.read() for one in opened if (stream := opened.extractfile(one))}


def _verify(members: Mapping[str, bytes], data: bytes, keys: Mapping[str, bytes], uri: str) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    unknown = []
    for name, signature in members.items():
        if (match := _SIGNATURE.fullmatch(name)) is None:
            continue
        if match[2] not in keys:
            unknown.append(match[2])
            continue
        key = serialization.load_pem_public_key(keys[match[2]])
        assert isinstance(key, rsa.RSAPublicKey), match[2]
        how = hashes.SHA1() if match[1] == "RSA" else hashes.SHA256()  # noqa: S303
        try:
            key.verify(signature, data, padding.PKCS1v15(), how)
        except InvalidSignature:
            raise _unsigned(uri, f"its signature by {match[2]} is wrong") from None
        return
    why = (
        f"it is signed by {', '.join(unknown)}, which the base does not trust"
        if unknown
        else "it has no signature"
    )
    raise _unsigned(uri, why)


def _unsigned(uri: str, why: str) -> HostError:
    return HostError(f"{uri}: {why}", reason="bad-signature", hint=_TAMPERED)
