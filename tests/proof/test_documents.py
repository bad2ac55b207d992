"""Inventories and provenance: every package manager's database, licences, and the published schemas."""

import json
import sqlite3
import struct
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from layer_samples import layer
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from kairosbuild.proof import contents, cyclonedx, licences, packages, spdx
from kairosbuild.proof.contents import Contents
from kairosbuild.proof.view import View

DIGEST = "sha256:" + "12" * 32
EPOCH = 1735689600
OS_RELEASE = 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13"\n'
DEP5 = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bash

Files: *
Copyright: 1 Somebody
License: GPL-3+

Files: x
Copyright: 2 Somebody
License: GPL-2+ or Artistic

Files: y
Copyright: 3 Else
License: Weird-Licence_1

License: GPL-3+
 On Debian …
"""
STATUS = """\
Package: bash
Status: install ok installed
Architecture: amd64
Source: bash-src (5.2)
Version: 5.2.37-2+b10
Description: x
 Package: not-this

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

"""
APK = "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nF:lib\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\nL:GPL-2.0-only\n\n"
DESC = "%NAME%\nzlib\n\n%VERSION%\n1:1.3.1-2\n\n%BASE%\nzlib\n\n%ARCH%\nx86_64\n\n%LICENSE%\nZlib\nBSD-3-Clause\n\n"


def rpm_database(folder: Path) -> bytes:
    """As rpm writes it: a header in a blob, in WAL mode."""
    file = folder / "rpmdb.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
    for name, epoch in (("glibc", 2), ("gpg-pubkey", 0)):
        connection.execute("INSERT INTO Packages (blob) VALUES (?)", [rpm_header(name, epoch)])
    connection.commit()
    connection.close()
    return file.read_bytes()


def rpm_header(name: str, epoch: int) -> bytes:
    texts = {1000: name, 1001: "2.42", 1002: "4.fc43", 1014: "LGPL-2.1-or-later AND GPLv2+", 1022: "x86_64",
             1044: "glibc-2.42-4.fc43.src.rpm"}  # fmt: skip
    rows, data = [], b""
    for tag, text in texts.items():
        rows.append(struct.pack(">IIII", tag, 6, len(data), 1))
        data += text.encode() + b"\0"
    data += b"\0" * (-len(data) % 4)
    rows.append(struct.pack(">IIII", 1003, 4, len(data), 1))
    data += struct.pack(">I", epoch)
    return struct.pack(">II", len(rows), len(data)) + b"".join(rows) + data


@pytest.fixture
def everything(tmp_path: Path) -> Contents:
    """An image that no one would build: every package manager in it at once."""
    base = layer(tmp_path, "base", {
        "etc/os-release": OS_RELEASE, "var/lib/dpkg/status": STATUS, "usr/share/doc/real/copyright": DEP5,
        "usr/lib/apk/db/installed": APK,
    }, {"usr/share/doc/bash": "real"})  # fmt: skip
    more = layer(tmp_path, "more, of all", {
        "var/lib/pacman/local/zlib-1:1.3.1-2/desc": DESC, "usr/lib/sysimage/rpm/rpmdb.sqlite": rpm_database(tmp_path),
    })  # fmt: skip
    kernel = layer(tmp_path, "kernel", {"usr/lib/modules/6.12/vmlinuz": b"x"})
    locked = {
        "base": ("base", {"packages": [
            {"name": "bash", "version": "5.2.37-2+b10", "arch": "amd64", "digest": DIGEST},
            {"name": "removed-since", "version": "1", "arch": "amd64", "digest": DIGEST},
        ]}),
        "kernel": ("kernel", {"family": "apt", "packages": [
            {"name": "linux-image", "version": "6.12", "arch": "amd64", "digest": DIGEST},
        ]}),
    }  # fmt: skip
    return contents.contents([base, more, kernel], locked)


def test_packages_of_every_database(everything: Contents) -> None:
    found = {one.name: one for one in everything.packages}
    assert set(found) == {"bash", "musl", "busybox", "zlib", "glibc", "linux-image"}
    bash, zlib, glibc, kernel = (found[name] for name in ("bash", "zlib", "glibc", "linux-image"))
    assert (
        bash.licence
        == "(GPL-2.0-or-later OR Artistic-1.0-Perl) AND GPL-3.0-or-later AND LicenseRef-Weird-Licence-1"
    )
    assert (bash.node, bash.digest, bash.source) == ("base", DIGEST, "bash-src")
    assert (zlib.type, zlib.version, zlib.node) == ("alpm", "1:1.3.1-2", "more, of all")
    assert zlib.licence == "BSD-3-Clause AND Zlib"
    assert (glibc.type, glibc.version, glibc.arch) == ("rpm", "2:2.42-4.fc43", "x86_64")
    assert glibc.licence == "LGPL-2.1-or-later AND GPL-2.0-or-later"
    assert (kernel.type, kernel.node, kernel.licence) == ("deb", "kernel", "NOASSERTION")
    for one in everything.packages:
        purl = one.purl(everything.system)
        assert PackageURL.from_string(purl).to_string() == purl


def test_what_is_kept_reads_back(everything: Contents) -> None:
    assert Contents.read(json.loads(json.dumps(everything.json()))) == everything


def test_spdx_is_valid_and_always_the_same(everything: Contents, tmp_path: Path) -> None:
    made = spdx.document("debian:os", DIGEST, everything, EPOCH)
    assert spdx.document("debian:os", DIGEST, everything, EPOCH) == made
    (tmp_path / "sbom.spdx.json").write_text(json.dumps(made))
    parsed = parse_file(str(tmp_path / "sbom.spdx.json"))
    assert validate_full_spdx_document(parsed, "SPDX-2.3") == []
    assert len(parsed.packages) == 1 + 3 + 6
    text = json.dumps(made)
    assert str(tmp_path) not in text
    held = {(r["spdxElementId"], r["relatedSpdxElement"]) for r in made["relationships"]}
    bash = next(p["SPDXID"] for p in made["packages"] if p["name"] == "bash")
    assert ("SPDXRef-layer-0", bash) in held
    assert ("SPDXRef-image", "SPDXRef-layer-2") in held


def test_cyclonedx_is_valid_and_always_the_same(everything: Contents) -> None:
    made = cyclonedx.document("debian:os", DIGEST, everything, EPOCH)
    assert cyclonedx.document("debian:os", DIGEST, everything, EPOCH) == made
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(made)) is None
    refs = [one["bom-ref"] for one in made["components"]]
    assert len(refs) == len(set(refs)) == 3 + 6


def test_a_removed_package_is_not_listed(tmp_path: Path) -> None:
    base = layer(tmp_path, "base", {"var/lib/dpkg/status": STATUS})
    gone = layer(
        tmp_path, "system", {"var/lib/dpkg/status": STATUS.replace("install ok installed", "deinstall ok x")}
    )
    assert contents.contents([base, gone], {}).packages == ()


def test_an_image_of_nothing_but_files(tmp_path: Path) -> None:
    found = contents.contents([layer(tmp_path, "site", {"etc/motd": "hello"})], {})
    assert found.packages == ()
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(
            json.dumps(cyclonedx.document("x", DIGEST, found, 0))
        )
        is None
    )


@pytest.mark.parametrize("database", [b"", b"SQLite format 3\0junk" + b"\xff" * 4096, b"SQLite format 3\0"])
def test_damaged_databases_hold_nothing(database: bytes, tmp_path: Path) -> None:
    files = {
        "var/lib/rpm/rpmdb.sqlite": database,
        "var/lib/dpkg/status": b"\xff\xfe\n\n::\n",
        "lib/apk/db/installed": b"\0",
    }
    assert packages.installed(View([layer(tmp_path, "x", files)])) == ()


def test_links_in_a_circle_or_out_are_not_followed(tmp_path: Path) -> None:
    view = View([layer(tmp_path, "x", {"etc/real": "yes"}, {
        "a": "b", "b": "a", "out": "../../../../etc/passwd", "up": "../etc/real", "dir": "/etc",
    })])  # fmt: skip
    assert view.read("a") is None
    assert view.read("out") is None
    assert view.read("up") == b"yes"
    assert view.read("dir/real") == b"yes"
    assert view.names("dir") == ("real",)


@pytest.mark.parametrize(("stated", "expected"), [
    ("MIT", "MIT"), ("mit", "MIT"), ("GPLv2+ and MIT", "GPL-2.0-or-later AND MIT"), ("", "NOASSERTION"),
    ("GPL-2.0-only WITH Linux-syscall-note", "GPL-2.0-only WITH Linux-syscall-note"),
    ("GPL-2.0-only WITH no-such", "LicenseRef-GPL-2.0-only-WITH-no-such"),
    ("Redistributable, no modification permitted", "LicenseRef-Redistributable-no-modification-permitted"),
    ("(MIT OR Apache-2.0) AND ISC", "(MIT OR Apache-2.0) AND ISC"), ("custom:zoom", "LicenseRef-custom-zoom"),
    ("LicenseRef-Fedora-Public-Domain", "LicenseRef-Fedora-Public-Domain"),
])  # fmt: skip
def test_licences(stated: str, expected: str) -> None:
    assert licences.expression(stated) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("This is free software, under the GPL.\n", "NOASSERTION"),
    (DEP5.replace("Artistic", "GPL-2 with OpenSSL exception"), None),
    ("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Expat\n", "MIT"),
    ("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n"
     "License: GPL-2 with Linux-syscall-note exception\n", "GPL-2.0-only WITH Linux-syscall-note"),
])  # fmt: skip
def test_licences_of_copyright_files(text: str, expected: str | None) -> None:
    found = licences.of_copyright(text)
    assert found == expected or (expected is None and "LicenseRef-" in found)
