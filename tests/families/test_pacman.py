"""Arch: the contract, by the real pacman (Debian's build of it), over packages made and signed here."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from functools import cache
from pathlib import Path

import pysequoia
import pytest
import zstandard
from contract import *  # noqa: F403
from contract import Work
from distros.foreign import root
from distros.serving import layout

ABOUT = b'NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\nPRETTY_NAME="A root with pacman"\n'


class Key:
    def __init__(self) -> None:
        self._secret = pysequoia.Tsk.generate(user_id="Test packager <packager@example.org>")

    def sign(self, data: bytes) -> bytes:
        return bytes(pysequoia.sign(self._secret.signer(), data, mode=pysequoia.SignatureMode.DETACHED))

    @property
    def certificate(self) -> bytes:
        return bytes(self._secret.extract_certificate())


@cache
def _key() -> Key:
    """One for all tests, so that they have the same base."""
    return Key()


class SmallArch:
    mirror = "arch"
    signed_metadata = False

    def __init__(self) -> None:
        self.key = self.signer = _key()
        self.files: dict[str, bytes] = {}
        self.packages: dict[str, tuple[str, dict[str, list[str]]]] = {}
        self.unsigned = False
        self._write("extra", {})

    def base(self, folder: Path) -> str:
        files = {
            "usr/lib/os-release": ABOUT,
            "var/lib/pacman": None,
            "var/lib/pacman/local": None,
            "var/lib/pacman/local/ALPM_DB_VERSION": b"9\n",
            "usr/share/pacman/keyrings/archlinux.gpg": self.key.certificate,
        }
        return layout(folder, root(("pacman-package-manager",), files), "base")

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        about = {
            "NAME": [name], "VERSION": [f"{version}-1"], "ARCH": ["any"], "DESC": [name], "LICENSE": ["MIT"],
            "DEPENDS": depends.split(), "CONFLICTS": conflicts.split(),
        }  # fmt: skip
        info = [
            f"pkgname = {name}",
            f"pkgver = {version}-1",
            "arch = any",
            "builddate = 1600000000",
            "size = 1",
        ]
        info += [f"depend = {one}" for one in depends.split()] + [
            f"conflict = {one}" for one in conflicts.split()
        ]
        members = {
            ".PKGINFO": "\n".join([*info, ""]).encode(),
            f"usr/share/{name}/about": f"{name} {version}\n".encode(),
        }
        content = zstandard.compress(_tar(members))
        where = f"core/os/x86_64/{name}-{version}-1-any.pkg.tar.zst"
        self.files[where] = content
        self.packages[name] = where, {key: values for key, values in about.items() if values}
        return where

    def publish(self) -> None:
        self._write("core", self.packages)

    def metadata(self) -> str:
        return "core/os/x86_64/core.db"

    def forge(self) -> None:
        self.signer = Key()
        self.publish()

    def strip(self) -> None:
        self.unsigned = True
        self.publish()

    def _write(self, repository: str, packages: dict[str, tuple[str, dict[str, list[str]]]]) -> None:
        members = {}
        for name, (where, about) in packages.items():
            content = self.files[where]
            signature = (
                {} if self.unsigned else {"PGPSIG": [base64.b64encode(self.signer.sign(content)).decode()]}
            )
            fields = {
                "FILENAME": [where.rpartition("/")[2]], **about, "CSIZE": [str(len(content))], "ISIZE": ["1"],
                "SHA256SUM": [hashlib.sha256(content).hexdigest()], **signature,
            }  # fmt: skip
            text = "".join(f"%{key}%\n" + "\n".join(values) + "\n\n" for key, values in fields.items())
            members[f"{name}-{about['VERSION'][0]}/desc"] = text.encode()
        self.files[f"{repository}/os/x86_64/{repository}.db"] = zstandard.compress(_tar(members))


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, content in members.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 1_600_000_000
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def distribution() -> SmallArch:
    return SmallArch()


def test_what_was_asked_for_is_explicit_and_the_rest_is_not(work: Work) -> None:
    work.kbuild("lock", "small.yaml")
    layer = work.layer("tools")
    tool, library = (layer[f"var/lib/pacman/local/{name}-1-1/desc"] or b"" for name in ("tool", "library"))
    assert b"%REASON%" not in tool and b"%REASON%\n1\n" in library
    assert b"%INSTALLDATE%\n1735689600\n" in tool, "the epoch, not today"
    assert not [
        path for path in layer if path.startswith(("var/lib/pacman/sync/", "var/log/", "var/cache/pacman/"))
    ]
