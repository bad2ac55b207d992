"""openSUSE: the contract, by the real zypper (Debian's build of it), over RPMs made and signed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from contract import *  # noqa: F403
from distros.foreign import root
from distros.rpms import Rpm, Signer, build, repository
from distros.serving import layout
from peers import peer

ABOUT = (
    b'NAME="openSUSE Tumbleweed"\nID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\nVERSION_ID="20261101"\n'
)
PLACE = "tumbleweed/repo/oss"


class SmallSuse:
    mirror = "opensuse"

    def __init__(self, folder: Path, signer: Signer, database: bytes) -> None:
        self.folder, self.signer, self.database = folder, signer, database
        self.files: dict[str, bytes] = {}
        self.rpms: dict[str, Rpm] = {}

    def base(self, folder: Path) -> str:
        files = {
            "usr/lib/os-release": ABOUT,
            "usr/lib/rpm/gnupg": None,
            "usr/lib/rpm/gnupg/keys": None,
            "usr/lib/rpm/gnupg/keys/test.asc": self.signer.certificate(),
            "usr/lib/sysimage": None,
            "usr/lib/sysimage/rpm": None,
            "usr/lib/sysimage/rpm/rpmdb.sqlite": self.database,
            "etc/rpm": None,
            "etc/rpm/macros.place": b"%_dbpath /usr/lib/sysimage/rpm\n",
        }
        return layout(folder, root(("zypper", "rpm"), files), "base")

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        rpm = Rpm(name, version, requires=tuple(depends.split()), conflicts=tuple(conflicts.split()))
        rpm.add(f"usr/share/{name}/about", f"{name} {version}\n".encode(), self.folder / "stage")
        self.rpms[name] = rpm
        return f"{PLACE}/{name}-{version}-1.x86_64.rpm"

    def publish(self) -> None:
        self._write(self.signer)

    def metadata(self) -> str:
        return f"{PLACE}/repodata/repomd.xml"

    def forge(self) -> None:
        self._write(Signer(self.folder / "stranger", "stranger <stranger@example.org>"))

    def strip(self) -> None:
        del self.files[f"{self.metadata()}.asc"]
        self.files[f"{self.metadata()}.asc"] = b""

    def _write(self, signer: Signer) -> None:
        place = self.folder / "repository"
        shutil.rmtree(place, ignore_errors=True)
        build(self.rpms.values(), place, {0: "root"}, {0: "root"})
        repository(place)
        signer.sign_metadata(place)
        self.files.clear()
        for path in place.rglob("*"):
            if path.is_file():
                self.files[f"{PLACE}/{path.relative_to(place)}"] = path.read_bytes()


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signer, bytes]:
    """A key and an empty database of rpm, for all tests, so that they have the same base."""
    place = tmp_path_factory.mktemp("suse")
    options = ["--dbpath", str(place / "db"), "-D", "_db_backend sqlite"]
    subprocess.run([peer("rpm"), *options, "--initdb"], check=True, capture_output=True)
    signer = Signer(place / "key", "opensuse test <opensuse@example.org>")
    return signer, (place / "db/rpmdb.sqlite").read_bytes()


@pytest.fixture
def distribution(tmp_path: Path, trusted: tuple[Signer, bytes]) -> SmallSuse:
    (tmp_path / "suse").mkdir()
    return SmallSuse(tmp_path / "suse", *trusted)
