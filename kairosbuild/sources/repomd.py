"""An RPM repository, from its repomd.xml down: primary.xml known by its digest, packages by primary.xml's.

`primary.xml` of a distribution is 200 MB of which a build looks at some hundred packages. So it stays bytes:
packages are found by what a search finds, and only those are parsed.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.sources.debian import Fetch
from kairosbuild.sources.evr import Evr, newest_last
from kairosbuild.sources.stanza import Package

_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "http://linux.duke.edu/metadata/common"
_RPM = "http://linux.duke.edu/metadata/rpm"
_WRAP = f'<metadata xmlns="{_COMMON}" xmlns:rpm="{_RPM}">'.encode(), b"</metadata>"
_GIVEN = ("primary", "modules")
"""What a resolver gets of a repository: what it decides by, and nothing that only people read."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository: a folder of a named mirror."""

    mirror: str
    path: str

    def uri(self, location: str) -> str:
        """Of a file in it."""
        return f"{self.mirror}:{self.path}/{location}"

    def json(self) -> dict[str, Any]:
        """The form this takes in a lock."""
        return {"mirror": self.mirror, "path": self.path}

    @classmethod
    def of(cls, value: Any) -> Repository:
        """Read that form."""
        return cls(value["mirror"], value["path"])


@dataclass(frozen=True, slots=True)
class Described:
    """A package as primary.xml describes it."""

    package: Package
    evr: Evr
    requires: tuple[str, ...]
    provides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """A repository whose metadata is here and verified. `files` are for a resolver, relative to its root."""

    repository: Repository
    primary: bytes
    files: dict[str, Path | bytes] = field(default_factory=dict)

    def at(self, location: str) -> Described | None:
        """The package at this place; None when there is none."""
        where = self.primary.find(b'<location href="%s"' % location.encode())
        return self._around(where) if where >= 0 else None

    def named(self, name: str) -> list[Described]:
        """Every version of a package, newest first."""
        mark = b"<name>%s</name>" % name.encode()
        return self._sorted(match.start() for match in re.finditer(re.escape(mark), self.primary))

    def beginning(self, name: str) -> list[Described]:
        """Every package whose name begins so, newest first."""
        mark = b"<name>" + re.escape(name.encode()) + rb"[^<]*</name>"
        return self._sorted(match.start() for match in re.finditer(mark, self.primary))

    def names(self) -> set[str]:
        """The names of all packages."""
        return {name.decode() for name in re.findall(rb"<name>([^<]+)</name>", self.primary)}

    def _sorted(self, places: Iterator[int]) -> list[Described]:
        found = [one for place in places if (one := self._around(place))]
        return sorted(found, key=lambda one: newest_last(one.evr), reverse=True)

    def _around(self, place: int) -> Described | None:
        start, end = self.primary.rfind(b"<package ", 0, place), self.primary.find(b"</package>", place)
        try:
            element = ET.fromstring(_WRAP[0] + self.primary[start : end + 10] + _WRAP[1])  # noqa: S314 - verified
            return _described(element[0], self.repository)
        except (ET.ParseError, LookupError, KeyError, ValueError, AttributeError):
            raise _strange(self.repository.uri("repodata/primary.xml")) from None


def open_repository(
    repository: Repository, fetch: Fetch, *, certificates: Sequence[bytes] = (), signed: bool = False
) -> Metadata:
    """Fetch what a repository says of itself; `signed`: refuse it unless a key of these made repomd.xml.asc.

    Fedora and its kin sign packages and not repomd.xml: there every package's own signature is what counts
    (`rpm.verify`). Raises HostError (`bad-signature`, `repository-format`, those of a fetch).
    """
    uri = repository.uri("repodata/repomd.xml")
    text = fetch(uri).read_bytes()
    if signed:
        from kairosbuild.sources.openpgp import signed_by

        signed_by(text, [fetch(f"{uri}.asc").read_bytes()], uri, certificates)
    files: dict[str, Path | bytes] = {}
    kept, primary = [], b""
    for kind, location, blob in _listed(text, uri):
        if kind not in _GIVEN:
            continue
        files[location] = fetch(repository.uri(location), digest=blob.digest, size=blob.size)
        kept.append(_data(kind, location, blob))
        if kind == "primary":
            primary = _decompressed(fetch(repository.uri(location), digest=blob.digest, size=blob.size), uri)
    if not primary:
        raise _strange(uri)
    rows = "\n".join(kept)
    files["repodata/repomd.xml"] = (
        f'<repomd xmlns="http://linux.duke.edu/metadata/repo">\n<revision>1</revision>\n{rows}\n</repomd>\n'
    ).encode()
    return Metadata(repository, primary, files)


def _data(kind: str, location: str, blob: Blob) -> str:
    return (
        f'<data type="{kind}"><checksum type="sha256">{blob.hex}</checksum>'
        f"<location href={quoteattr(location)}/><size>{blob.size}</size></data>"
    )


def _listed(text: bytes, uri: str) -> Iterator[tuple[str, str, Blob]]:
    """Kind, location and blob of each file of metadata."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise _strange(uri)
    try:
        root = ET.fromstring(text)  # noqa: S314 - no document type, so no entities
        for data in root.iter(f"{_REPO}data"):
            checksum, location = data.find(f"{_REPO}checksum"), data.find(f"{_REPO}location")
            size = data.findtext(f"{_REPO}size")
            if checksum is None or location is None or checksum.get("type") != "sha256" or not size:
                continue
            blob = Blob(f"sha256:{(checksum.text or '').strip()}", int(size))
            yield data.attrib["type"], _safe(location.attrib["href"], uri), blob
    except (ET.ParseError, LookupError, ValueError):
        raise _strange(uri) from None


def _described(element: ET.Element, repository: Repository) -> Described:
    common, rpm = f"{{{_COMMON}}}", f"{{{_RPM}}}"

    def part(name: str) -> ET.Element:
        found = element.find(common + name)
        if found is None:
            raise LookupError(name)
        return found

    version, checksum, location = part("version"), part("checksum"), part("location")
    if checksum.get("type") != "sha256":
        raise LookupError("checksum")
    evr = (version.get("epoch") or "0", version.get("ver") or "", version.get("rel") or "")
    package = Package(
        part("name").text or "",
        (f"{evr[0]}:" if evr[0] != "0" else "") + f"{evr[1]}-{evr[2]}",
        part("arch").text or "",
        repository.uri(_safe(location.attrib["href"], repository.uri("repodata/primary.xml"))),
        f"sha256:{checksum.text}",
        int(part("size").attrib["package"]),
    )
    relations = {
        name: tuple(_relation(one) for one in element.iterfind(f"{common}format/{rpm}{name}/{rpm}entry"))
        for name in ("requires", "provides")
    }
    return Described(package, evr, relations["requires"], relations["provides"])


def _relation(entry: ET.Element) -> str:
    """A relation as one text, so that an exact one equals what provides it."""
    return " ".join(filter(None, (entry.get("name"), entry.get("flags"), entry.get("ver"))))


def _safe(location: str, uri: str) -> str:
    if location.startswith("/") or ":" in location.partition("/")[0] or ".." in location.split("/"):
        raise _strange(uri)
    return location


def _decompressed(path: Path, uri: str) -> bytes:
    from kairosbuild.oci.transport import decompress

    with path.open("rb") as stream:
        found = decompress(stream).read()
    if b"<!DOCTYPE" in found[:4096] or b"<!ENTITY" in found[:4096]:
        raise _strange(uri)
    return found


def _strange(uri: str) -> HostError:
    return HostError(
        f"{uri} is not the metadata of a repository", reason="repository-format", hint="try another mirror"
    )
