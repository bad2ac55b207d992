"""Extensions of a machine: fetched, held against digest, signature, kernel and system; merged, kept, removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from machine_registry import MachineRegistry
from samples import Image

from kairosbuild.node import config
from kairosbuild.node.extensions import Content, Extensions, Merger, System, shown
from kairosbuild.node.http import Access
from kairosbuild.node.machine import Machine
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository

HASH = "ab" * 32
DEBIAN = {"ID": "debian", "VERSION_ID": "13"}


class Played(Merger):
    """A machine whose mount and systemd are played: what images say is told, what is linked is merged."""

    def __init__(self, folder: Path, **content: Any) -> None:
        self.folder = folder
        self.content = Content(content.get("release", {"ID": "_any"}), content.get("kernels", ()))
        self.runs = System("6.12", DEBIAN)
        self.open = False

    def system(self) -> System:
        return self.runs

    def look(self, image: Path, kind: str, name: str) -> Content:
        assert image.read_bytes() == b"image of tool"
        return self.content

    def links(self, kind: str) -> Path:
        return self.folder / kind

    def merge(self, kind: str) -> None:
        for one in self.folder.joinpath(kind).iterdir():
            assert one.suffix != ".raw" or one.read_bytes(), "a link that leads nowhere"

    def uses(self, image: Path) -> bool:
        return self.open

    def merged(self, kind: str) -> set[str]:
        return {one.stem for one in self.folder.joinpath(kind).glob("*.raw")}


def publish(registry: MachineRegistry, **more: Any) -> None:
    kind = more.get("kind", "sysext")
    image = registry.blob(
        b"image of tool", f"application/vnd.kairosbuild.{kind}", more.get("title", "tool.raw")
    )
    registry.manifest(
        "tool",
        {
            "artifactType": f"application/vnd.kairosbuild.{kind}.v1",
            "config": registry.blob(b"{}"),
            "layers": [image],
            "annotations": {"root-hash": HASH, **more.get("annotations", {})},
        },
    )


def added(
    known: Extensions, registry: MachineRegistry, verify: Any = lambda repository, manifest: None
) -> Any:
    reference = parse(f"{registry.host}/os:tool")
    repository = Repository(reference, Access(), sleep=lambda seconds: None)
    return known.add(reference, repository, verify, "linux/amd64", lambda text: None)


def test_one_is_added_listed_and_removed(registry: MachineRegistry, here: Machine, tmp_path: Path) -> None:
    known = Extensions(here, Played(tmp_path))
    publish(registry)
    assert added(known, registry).root_hash == HASH
    (row,) = known.listed()
    assert (row["name"], row["kind"], row["merged"], row["why"]) == ("tool", "sysext", True, "")
    assert "merged" in shown([row])
    assert (tmp_path / "sysext/tool.roothash").read_text() == f"{HASH}\n"
    assert added(known, registry), "again is harmless"
    known.remove("tool", lambda text: None)
    assert (known.listed(), list((tmp_path / "sysext").iterdir())) == ([], [])
    assert list((here.disk / "extensions").iterdir()) == []


def test_an_image_that_is_open_goes_later(registry: MachineRegistry, here: Machine, tmp_path: Path) -> None:
    known = Extensions(here, merger := Played(tmp_path))
    publish(registry)
    added(known, registry)
    merger.open = True
    known.remove("tool", lambda text: None)
    assert known.all() == []
    assert [one.suffix for one in (here.disk / "extensions").iterdir()] == [".raw"]
    merger.open = False
    known.tidy()
    assert list((here.disk / "extensions").iterdir()) == []


def test_those_that_do_not_fit_any_more_are_left_out(
    registry: MachineRegistry, here: Machine, images: tuple[Image, Image], tmp_path: Path
) -> None:
    merger = Played(tmp_path, kernels=("6.12",), release={**DEBIAN, "ARCHITECTURE": "x86-64"})
    known = Extensions(here, merger)
    publish(registry)
    added(known, registry)
    for runs in (System("6.13", DEBIAN), System("6.12", {**DEBIAN, "VERSION_ID": "14"})):
        merger.runs = runs
        told: list[str] = []
        known.merge(told.append)
        (row,) = known.listed()
        assert not row["merged"]
        assert row["why"] in told[0]
    merger.runs = System("6.12", DEBIAN)
    known.merge(told.append)
    assert known.listed()[0]["merged"]


@pytest.mark.parametrize(
    ("publication", "content", "reason"),
    [
        ({}, {"kernels": ("6.11",)}, "other-kernel"),
        ({}, {"kernels": ("6.11", "6.12")}, "other-kernel"),
        ({"annotations": {"kernels": "6.11"}}, {}, "other-kernel"),
        ({}, {"release": {"ID": "fedora"}}, "other-system"),
        ({}, {"release": {"ID": "debian", "VERSION_ID": "12"}}, "other-system"),
        ({"kind": "disk"}, {}, "not-an-extension"),
        ({"title": "../tool.raw"}, {}, "bad-extension"),
        ({"annotations": {"root-hash": ""}}, {}, "bad-extension"),
    ],
)
def test_what_is_refused_leaves_nothing(
    registry: MachineRegistry, here: Machine, tmp_path: Path, publication: Any, content: Any, reason: str
) -> None:
    known = Extensions(here, Played(tmp_path, **content))
    publish(registry, **publication)
    with pytest.raises(Problem) as caught:
        added(known, registry)
    assert caught.value.reason == reason
    assert known.all() == []
    assert not list(here.disk.rglob("*tool*"))


def test_changed_bytes_and_missing_signatures_are_refused(
    registry: MachineRegistry, here: Machine, tmp_path: Path
) -> None:
    known = Extensions(here, Played(tmp_path))
    publish(registry)

    def unsigned(repository: Repository, manifest: object) -> None:
        raise Problem("nobody signed it", reason="not-signed")

    with pytest.raises(Problem, match="nobody signed"):
        added(known, registry, unsigned)
    registry.change = lambda path, data: data.upper() if "/blobs/" in path else data
    with pytest.raises(Problem) as caught:
        added(known, registry)
    assert (caught.value.reason, known.all()) == ("registry-lied", [])


def test_a_fetch_that_broke_off_goes_on(registry: MachineRegistry, here: Machine, tmp_path: Path) -> None:
    publish(registry)
    registry.cut = [4]
    added(Extensions(here, Played(tmp_path)), registry)
    assert registry.sent == len(b"image of tool")


def test_a_record_that_says_nonsense_is_no_extension(
    registry: MachineRegistry, here: Machine, tmp_path: Path
) -> None:
    known = Extensions(here, Played(tmp_path))
    publish(registry)
    added(known, registry)
    record = here.disk / "extensions/tool.json"
    for nonsense in ("{", "[]", "{}", json.dumps({**json.loads(record.read_text()), "kind": "x"})):
        record.write_text(nonsense)
        assert known.all() == []
    with pytest.raises(Problem, match="there is no extension"):
        known.remove("tool", lambda text: None)


def test_where_nothing_merges_extensions_they_are_refused(
    registry: MachineRegistry, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kairosbuild.node.extensions.shutil.which", lambda name, path: None)
    publish(registry)
    with pytest.raises(Problem) as caught:
        added(Extensions(here, Merger()), registry)
    assert (caught.value.reason, registry.seen) == ("no-sysext", [])


def test_one_that_systemd_will_not_merge_is_taken_away_again(
    registry: MachineRegistry, here: Machine, tmp_path: Path
) -> None:
    class Refusing(Played):
        def merge(self, kind: str) -> None:
            if self.merged(kind):
                raise Problem("Required key not available", reason="command-failed")

    known = Extensions(here, Refusing(tmp_path))
    publish(registry)
    with pytest.raises(Problem, match="Required key not available") as caught:
        added(known, registry)
    assert caught.value.reason == "not-merged"
    assert known.all() == []
    assert list((here.disk / "extensions").iterdir()) == []


@pytest.mark.parametrize("target", ["quay.example/tools/htop:1", "docker://quay.example/tools/htop:1"])
def test_bundles_are_references(target: str) -> None:
    found = config.read(f"#cloud-config\nbundles: [{{targets: ['{target}']}}]\n")
    assert found["bundles"] == [{"targets": [target]}]


@pytest.mark.parametrize("target", ["run://quay.example/tools/htop:1", "htop", "package:utils/edgevpn"])
def test_bundles_of_other_sorts_are_told(target: str) -> None:
    with pytest.raises(Problem) as caught:
        config.read(f"#cloud-config\nbundles: [{{targets: ['{target}']}}]\n")
    assert caught.value.reason == "bad-config"
    assert "1:" in str(caught.value) or "2:" in str(caught.value)
