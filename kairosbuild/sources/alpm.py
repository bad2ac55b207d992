"""Arch's repositories: a database of descriptions, and packages that are each signed. See alpm-repo-db(7).

The database is not signed, as Arch has it: what counts is every package's own signature, which the database
carries with its SHA-256. So packages are fetched and verified when they are locked.
"""

from __future__ import annotations

import base64
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kairosbuild.core.errors import HostError, InputError, nearest
from kairosbuild.oci.layer import Item
from kairosbuild.sources.spool import spooled
from kairosbuild.sources.stanza import Package

Fields = Mapping[str, tuple[str, ...]]
_ABOUT = (
    "NAME", "VERSION", "DESC", "ARCH", "BUILDDATE", "SIZE", "GROUPS", "LICENSE", "DEPENDS", "OPTDEPENDS",
    "CONFLICTS", "PROVIDES", "REPLACES",
)  # fmt: skip
_PKGINFO = {
    "pkgname": "NAME", "pkgver": "VERSION", "pkgdesc": "DESC", "arch": "ARCH", "builddate": "BUILDDATE", "size": "SIZE",
    "group": "GROUPS", "license": "LICENSE", "depend": "DEPENDS", "conflict": "CONFLICTS", "provides": "PROVIDES",
    "replaces": "REPLACES",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository, such as `core`."""

    name: str

    def json(self) -> dict[str, Any]:
        """The form this takes in a lock."""
        return {"mirror": "arch", "repository": self.name}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Repository:
        """Read that form."""
        return cls(value["repository"])

    def uri(self, arch: str, file: str) -> str:
        """Where a file of it is, relative to a mirror."""
        return f"arch:{self.name}/os/{arch}/{file}"


@dataclass(frozen=True, slots=True)
class Described:
    """A package as a database describes it."""

    package: Package
    fields: Fields

    @property
    def signature(self) -> bytes:
        """Its detached signature; empty when there is none."""
        return base64.b64decode("".join(self.fields.get("PGPSIG", ())))


class Index:
    """The packages of several repositories; of equal names the first repository counts, as for pacman."""

    def __init__(self, packages: Iterable[Described]) -> None:
        self._by_name: dict[str, Described] = {}
        for one in packages:
            self._by_name.setdefault(one.package.name, one)

    def get(self, name: str, version: str = "") -> Described:
        """A package of this name. Raises InputError (`package-unknown`)."""
        found = self._by_name.get(name)
        if found is None:
            near = [known for known in self._by_name if known[:2] == name[:2]]
            hint = nearest(name, near) if near else ""
            raise InputError(f"there is no package {name!r}", reason="package-unknown", hint=hint)
        if version and found.package.version != version:
            raise InputError(
                f"no repository has {name} in version {version}",
                reason="package-unknown",
                hint=f"there is {found.package.version}",
            )
        return found

    def gives(self, word: str) -> bool:
        """Whether a package is called, provides, or is of a group called this."""
        return word in self._by_name or any(
            word == re.split("[=<>]", one)[0]
            for found in self._by_name.values()
            for one in (*found.fields.get("PROVIDES", ()), *found.fields.get("GROUPS", ()))
        )


def read_database(path: Path, repository: Repository, arch: str) -> Iterator[Described]:
    """The packages of a database. Raises HostError (`repository-format`)."""
    uri = repository.uri(arch, f"{repository.name}.db")
    try:
        with path.open("rb") as stream:
            content = _plain(stream)
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                stream_of = tar.extractfile(member) if member.name.endswith("/desc") else None
                if stream_of is not None:
                    yield _described(fields(stream_of.read().decode()), repository, arch)
    except (tarfile.TarError, KeyError, ValueError, InputError):
        raise HostError(
            f"{uri} is not the database of a repository",
            reason="repository-format",
            hint="try another mirror",
        ) from None


def fields(text: str) -> Fields:
    """The fields of a `desc` file."""
    found = {}
    for block in text.strip().split("\n\n"):
        name, *values = block.strip().splitlines()
        found[name.strip("%")] = tuple(values)
    return found


def description(path: Path) -> tuple[str, str]:
    """What the local database says of a package file, as far as a resolver reads it: its folder and its text."""
    values: dict[str, list[str]] = {}
    for line in _info(path).decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" = ")
        if name in _PKGINFO:
            values.setdefault(_PKGINFO[name], []).append(value)
    text = "".join(f"%{name}%\n" + "\n".join(values[name]) + "\n\n" for name in _ABOUT if name in values)
    return f"{values['NAME'][0]}-{values['VERSION'][0]}", text


def unpack(path: Path, spool: BinaryIO) -> Iterator[Item]:
    """The files of a package; contents go to `spool`."""
    from kairosbuild.oci.reader import read_tar
    from kairosbuild.oci.transport import decompress

    with path.open("rb") as stream:
        yield from spooled(read_tar(decompress(stream)), spool, lambda name: not name.startswith("."))


def verify(path: Path, one: Described, certificates: Sequence[bytes]) -> None:
    """Whether a key of these signed this file. Raises HostError (`bad-signature`)."""
    from kairosbuild.sources.openpgp import signed_by

    signed_by(path.read_bytes(), [one.signature] if one.signature else [], one.package.uri, certificates)


def _described(found: Fields, repository: Repository, arch: str) -> Described:
    file = found["FILENAME"][0]
    if "/" in file:
        raise ValueError(file)
    package = Package(
        found["NAME"][0],
        found["VERSION"][0],
        found["ARCH"][0],
        repository.uri(arch, file),
        f"sha256:{found['SHA256SUM'][0]}",
        int(found["CSIZE"][0]),
    )
    return Described(package, found)


def _plain(stream: BinaryIO) -> bytes:
    from kairosbuild.oci.transport import decompress

    return decompress(stream).read()


def _info(path: Path) -> bytes:
    from kairosbuild.oci.reader import read_tar
    from kairosbuild.oci.transport import decompress

    with path.open("rb") as stream:
        for entry, content in read_tar(decompress(stream)):
            if entry.path == ".PKGINFO" and content is not None:
                return content.read()
    raise HostError(f"{path.name} is no package", reason="repository-format")
