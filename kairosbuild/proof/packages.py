"""The packages in a tree, as the package managers' own databases have them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from kairosbuild.proof import licences
from kairosbuild.proof.view import View

_STATUS = ("var/lib/dpkg/status", "usr/lib/sysimage/dpkg/status")
_APK = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_RPM = ("usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite")
_PACMAN = ("var/lib/pacman/local", "usr/lib/pacman/local")
_TAGS = {
    1000: "name",
    1001: "version",
    1002: "release",
    1003: "epoch",
    1014: "licence",
    1022: "arch",
    1044: "source",
}
_STRINGS, _INT32 = (6, 8, 9), 4


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package. `type` is a package URL's; `node` brought it; `digest` is its file's, from the lock."""

    type: str
    name: str
    version: str
    arch: str = ""
    licence: str = licences.NONE
    node: str = ""
    digest: str = ""
    source: str = ""

    def purl(self, system: Mapping[str, str]) -> str:
        """Its package URL (<https://github.com/package-url/purl-spec>), with the distribution it is of."""
        vendor = system.get("ID", "").lower()
        named = f"{quote(vendor, safe='')}/" if vendor else ""
        release = system.get("VERSION_ID") or system.get("VERSION_CODENAME", "")
        said = {"arch": self.arch, "distro": f"{vendor}-{release}" if vendor and release else ""}
        query = "&".join(f"{key}={quote(value, safe=':')}" for key, value in sorted(said.items()) if value)
        version = quote(self.version, safe=":")
        return f"pkg:{self.type}/{named}{quote(self.name, safe='')}@{version}" + (
            f"?{query}" if query else ""
        )

    def json(self) -> dict[str, str]:
        """All of it."""
        return asdict(self)


def installed(view: View) -> tuple[Package, ...]:
    """Every package of every database in this tree, sorted."""
    return tuple(sorted({one for find in (_deb, _apk, _rpm, _alpm) for one in find(view)}))


def system(view: View) -> dict[str, str]:
    """What os-release says."""
    data = view.read("etc/os-release") or view.read("usr/lib/os-release") or b""
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").splitlines() if "=" in line)
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs if not name.startswith("#")}


def _deb(view: View) -> Iterator[Package]:
    texts = [view.read(path) for path in _STATUS]
    texts += [view.read(f"var/lib/dpkg/status.d/{name}") for name in view.names("var/lib/dpkg/status.d")]
    for fields in (one for text in texts if text for one in _stanzas(text, ": ")):
        if "Package" in fields and "installed" in fields.get("Status", "installed").split():
            name = fields["Package"]
            source = fields.get("Source", name).partition(" ")[0]
            licence = copyright_of(view, name)
            yield Package(
                "deb", name, fields["Version"], fields.get("Architecture", ""), licence, source=source
            )


def copyright_of(view: View, name: str) -> str:
    """The licence of a Debian package by its copyright file."""
    data = view.read(f"usr/share/doc/{name}/copyright")
    return licences.of_copyright(data.decode("utf-8", "replace")) if data else licences.NONE


def _apk(view: View) -> Iterator[Package]:
    for fields in (one for path in _APK for one in _stanzas(view.read(path) or b"", ":")):
        if "P" in fields and "V" in fields:
            licence = licences.expression(fields.get("L", ""))
            yield Package(
                "apk", fields["P"], fields["V"], fields.get("A", ""), licence, source=fields.get("o", "")
            )


def _alpm(view: View) -> Iterator[Package]:
    for folder in _PACMAN:
        for name in view.names(folder):
            text = (view.read(f"{folder}/{name}/desc") or b"").decode("utf-8", "replace")
            said = {
                head.strip("%"): rest for head, *rest in (block.split("\n") for block in text.split("\n\n"))
            }
            if "NAME" in said and "VERSION" in said:
                licence = licences.together([licences.expression(one) for one in said.get("LICENSE", ())])
                arch, source = said.get("ARCH", [""])[0], said.get("BASE", [""])[0]
                yield Package("alpm", said["NAME"][0], said["VERSION"][0], arch, licence, source=source)


def _rpm(view: View) -> Iterator[Package]:
    for path in _RPM:
        for header in _rpm_headers(view.read(path) or b""):
            said = _rpm_fields(header)
            if said.get("name") and said["name"] != "gpg-pubkey":
                epoch = f"{said['epoch']}:" if said.get("epoch") else ""
                version = f"{epoch}{said.get('version', '')}-{said.get('release', '')}"
                licence = licences.expression(said.get("licence", ""))
                source = said.get("source", "").rsplit("-", 2)[0]
                yield Package("rpm", said["name"], version, said.get("arch", ""), licence, source=source)


def _rpm_headers(database: bytes) -> Iterator[bytes]:
    """The headers in an rpm database of the SQLite kind, read from memory."""
    import sqlite3

    if not database.startswith(b"SQLite format 3\0"):
        return
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(
            database[:18] + b"\1\1" + database[20:]
        )  # what was in WAL mode is read without
        for (blob,) in connection.execute("SELECT blob FROM Packages ORDER BY hnum"):
            yield bytes(blob)
    except sqlite3.DatabaseError:
        return
    finally:
        connection.close()


def _rpm_fields(header: bytes) -> dict[str, Any]:
    """The tags of a header that are of use (rpm's format: an index of 16-byte entries, then their data)."""
    try:
        count, size = struct.unpack_from(">II", header)
        data = header[8 + 16 * count : 8 + 16 * count + size]
        entries = (struct.unpack_from(">IIII", header, 8 + 16 * number) for number in range(count))
        return {_TAGS[tag]: _value(data, kind, at) for tag, kind, at, _ in entries if tag in _TAGS}
    except (struct.error, ValueError):
        return {}


def _value(data: bytes, kind: int, at: int) -> Any:
    if kind == _INT32:
        return struct.unpack_from(">I", data, at)[0]
    if kind in _STRINGS:
        return data[at : data.index(b"\0", at)].decode("utf-8", "replace")
    return ""


def _stanzas(data: bytes, colon: str) -> Iterator[dict[str, str]]:
    """Paragraphs of `key: value` lines; continuation lines are left out."""
    for paragraph in data.decode("utf-8", "replace").split("\n\n"):
        lines = (line for line in paragraph.split("\n") if line and not line[0].isspace())
        fields = dict(line.partition(colon)[::2] for line in lines)
        if fields:
            yield fields
