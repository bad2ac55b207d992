"""Fedora's dnf 5: the contract, by the real dnf in a base out of Debian's files; and what is dnf's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import *  # noqa: F403
from contract import Work, rows
from distros.rpm_distribution import FEDORA, Shape, made
from distros.rpms import Rpm, Signer, build, repository


class SmallRpm:
    """A small repository beside the base of a shape, signed by the shape's key."""

    locks_files = True
    shape: Shape = FEDORA

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, made(self.shape)
        self.mirror = self.shape.repositories[0].partition("/")[0]
        self.root = self.shape.repositories[0].partition("/")[2]
        shutil.copytree(self.place / "key", folder / "key", ignore=shutil.ignore_patterns("S.*"))
        self.signer = Signer(folder / "key", f"{self.shape.id} test <{self.shape.id}@example.org>")
        self.stranger = Signer(folder / "stranger", "Stranger <stranger@example.org>")
        self.rpms: dict[str, Rpm] = {}
        self.files: dict[str, bytes] = {}
        self.others()

    def others(self) -> None:
        """The rest of the shape's repositories, empty."""
        for path in self.shape.repositories[1:]:
            empty = self.folder / "empty"
            empty.mkdir(exist_ok=True)
            repository(empty)
            mirror, _, root = path.partition("/")
            if mirror == self.mirror:
                self.files |= _files(empty, root)
            else:
                shutil.copytree(empty, self.folder / "mirrors" / path)

    def base(self, folder: Path) -> str:
        return f"oci-layout:{self.place / 'image'}:{self.shape.version}"

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        rpm = Rpm(name, version, requires=tuple(depends.split()), conflicts=tuple(conflicts.split()))
        self.rpms[name] = rpm.add(
            f"usr/share/{name}/about", f"{name} {version}\n".encode(), self.folder / f"stage-{version}"
        )
        return f"{self.root}/Packages/{name}-{version}-1.x86_64.rpm"

    def publish(self, signer: Signer | None = None, *, signed: bool = True) -> None:
        """The same package is the same file; signatures have a time in them."""
        folder = self.folder / "repository"
        if signer or not signed:
            shutil.rmtree(folder, ignore_errors=True)
        known = {file.name for file in folder.glob("Packages/*")}
        fresh = [one for one in self.rpms.values() if f"{one.name}-{one.version}-1.x86_64.rpm" not in known]
        made = set(build(fresh, folder / "Packages", {}, {})) if fresh else set()
        if signed:
            (signer or self.signer).sign(file for file in made if file.name not in known)
        repository(folder)
        self.files |= _files(folder, self.root)

    def metadata(self) -> str:
        return f"{self.root}/repodata/repomd.xml"

    def forge(self) -> None:
        self.publish(self.stranger)

    def strip(self) -> None:
        self.publish(signed=False)


def _files(folder: Path, root: str) -> dict[str, bytes]:
    return {f"{root}/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def distribution(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SmallRpm]:
    folder = tmp_path_factory.mktemp("rpm")
    small = SmallRpm(folder)
    for mirror in folder.glob("mirrors/*"):
        monkeypatch.setenv(f"KBUILD_MIRROR_{mirror.name.upper().replace('-', '_')}", mirror.as_uri())
    yield small


@pytest.mark.parametrize("how", ["forge", "strip"])
def test_what_nobody_signed_is_refused(work: Work, how: str) -> None:
    """Fedora signs packages, not metadata."""
    getattr(work.distribution, how)()
    reason, said = work.refused(3)
    assert reason == "bad-signature" and "sign" in said


def test_metadata_that_is_none_is_refused(work: Work) -> None:
    work.served.faults[work.distribution.metadata()] = "other"
    reason, _ = work.refused(3)
    assert reason == "repository-format"


def test_reasons_are_kept(work: Work) -> None:
    """dnf knows what was asked for and what came along."""
    work.kbuild("lock", "small.yaml")
    assert set(rows(work, "tools")) == {"tool", "library"}
    layer = work.layer("tools")
    reasons = (layer["usr/lib/sysimage/libdnf5/packages.toml"] or b"").decode()
    found = {
        line.partition(".x86_64")[0].strip('"'): line.partition('reason = "')[2].partition('"')[0]
        for line in reasons.splitlines()
        if "reason" in line
    }
    assert (found["tool"], found["library"]) == ("User", "Dependency"), reasons


def test_weak_dependencies_only_when_asked_for(work: Work) -> None:
    small = work.distribution
    assert isinstance(small, SmallRpm)
    small.add("tool", "2", depends="library")
    small.rpms["tool"].recommends = ("other",)
    small.publish()
    work.kbuild("lock", "small.yaml")
    assert set(rows(work, "tools")) == {"tool", "library"}
    recipe = work.folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("install: [tool]", "install: [tool], recommends: true"))
    work.kbuild("lock", "small.yaml")
    assert set(rows(work, "tools")) == {"tool", "library", "other"}


def test_a_release_without_a_key_is_refused(work: Work) -> None:
    recipe = work.folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("install: [tool]", 'install: [tool], release: "44"'))
    reason, said = work.refused(2)
    assert reason == "packages-keys" and "RPM-GPG-KEY-fedora-44" in said
