"""Ubuntu: the contract, by the real apt and dpkg; a base out of Debian's files that calls itself Ubuntu."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import *  # noqa: F403
from contract import Work, test_what_a_slow_mirror_does_not_deliver_the_next_one_does
from distros import ubuntu
from distros.serving import layout
from local_archive import Archive, Key

__all__ = ["test_what_a_slow_mirror_does_not_deliver_the_next_one_does"]

SUITES = ("noble", "noble-updates")


class SmallUbuntu:
    mirror = "ubuntu"

    def __init__(self, folder: Path) -> None:
        self.folder, self.archive = folder, Archive()
        self.files = self.archive.files
        empty = Archive(key=self.archive.key)
        empty.publish("noble-security", component="main")
        ubuntu.publish(empty, "noble-security")
        for path, content in empty.files.items():
            place = folder / "security" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def base(self, folder: Path) -> str:
        keyring = self.archive.key.keyring(self.folder / "keys").read_bytes()
        return layout(folder, ubuntu.base(self.folder, keyring), "24.04")

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        self.archive.paragraphs = [p for p in self.archive.paragraphs if f"Package: {name}\n" not in p]
        fields = {"Depends": depends} if depends else {}
        fields |= {"Conflicts": conflicts} if conflicts else {}
        fields |= {"Maintainer": "a@example.org", "Description": name}
        about = {f"usr/share/{name}": None, f"usr/share/{name}/about": f"{name} {version}\n".encode()}
        self.archive.add(name, version, files=about, **fields)
        return f"pool/main/{name[0]}/{name}/{name}_{version}_amd64.deb"

    def publish(self, key: Key | None = None) -> None:
        mine, self.archive.key = self.archive.key, key or self.archive.key
        for suite in SUITES:
            ubuntu.publish(self.archive, suite)
        self.archive.key = mine

    def metadata(self) -> str:
        return "dists/noble/InRelease"

    def forge(self) -> None:
        self.publish(Key())

    def strip(self) -> None:
        signed = self.files[self.metadata()]
        self.files[self.metadata()] = signed[signed.index(b"Origin:") : signed.index(b"-----BEGIN PGP SIG")]


@pytest.fixture
def distribution(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallUbuntu]:
    small = SmallUbuntu(tmp_path_factory.mktemp("ubuntu"))
    monkeypatch.setenv("KBUILD_MIRROR_UBUNTU_SECURITY", (small.folder / "security").as_uri())
    yield small


def test_the_suites_are_those_of_the_base(work: Work) -> None:
    work.kbuild("lock", "small.yaml")
    lock = json.loads((work.folder / "small.lock").read_text())
    repositories = lock["nodes"]["tools"]["data"]["repositories"]
    assert [(one["mirror"], one["suite"]) for one in repositories] == [
        ("ubuntu", "noble"), ("ubuntu", "noble-updates"), ("ubuntu-security", "noble-security"),
    ]  # fmt: skip
    assert lock["nodes"]["base"]["data"]["system"]["id"] == "ubuntu"


def test_a_change_in_a_large_set_redoes_its_part(work: Work) -> None:
    names = [f"part{number:02}" for number in range(25)]
    for name in names:
        work.distribution.add(name, depends="library")
    work.distribution.publish()
    work.write(", ".join(names))

    def stack() -> list[dict[str, object]]:
        work.kbuild("run", "small.yaml", "os", "--no-publish", "-o", "tools.stack=stack.json")
        found: list[dict[str, object]] = json.loads((work.folder / "stack.json").read_text())
        return found

    before = stack()
    assert len(before) == 3, "the base, twenty packages and what they need, five packages"
    work.distribution.add(names[-1], "2", depends="library")
    work.distribution.publish()
    work.kbuild("lock", "small.yaml", "--update")
    after = stack()
    assert after[:2] == before[:2] and after[2] != before[2]
    assert b"part24 2" in (work.layer("tools")["usr/share/part24/about"] or b"")
    work.kbuild("verify", "small.yaml", "os")
