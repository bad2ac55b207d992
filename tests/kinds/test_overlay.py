"""Kind overlay: what goes into the layer, and what is refused."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_task import SmallTask

from kairosbuild.core.errors import KbuildError, Problems
from kairosbuild.graph.stack import load
from kairosbuild.kinds.overlay import FileSpec, FolderSpec, Overlay, OverlaySpec
from kairosbuild.kinds.table import TABLE
from kairosbuild.recipe.load import parse
from kairosbuild.recipe.workspace import Cache, Workspace
from kairosbuild.store.store import Store

EPOCH = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


Build = Callable[..., tuple[dict[str, tarfile.TarInfo], SmallTask, Mapping[str, Any]]]


@pytest.fixture
def build(store: Store) -> Build:
    def once(spec: OverlaySpec, **sources: Path) -> tuple[dict[str, tarfile.TarInfo], SmallTask, Any]:
        roles = {role.replace("__", "."): path for role, path in sources.items()}
        task = SmallTask(store, spec, sources=roles)
        outputs = Overlay().build(task)
        with tarfile.open(store.cas.path(outputs["layer"].digest)) as tar:
            return {member.name: member for member in tar}, task, outputs

    return once


def content(store: Store, outputs: Mapping[str, Any], name: str) -> bytes:
    with tarfile.open(store.cas.path(outputs["layer"].digest)) as tar:
        found = tar.extractfile(name)
        assert found is not None
        return found.read()


def test_a_source_folder(build: Build, store: Store, tmp_path: Path) -> None:
    top = tmp_path / "site"
    (top / "etc/app").mkdir(parents=True)
    (top / "etc/app/conf").write_text("x")
    (top / "etc/app/run").write_text("#!/bin/sh\n")
    (top / "etc/app/run").chmod(0o711)
    (top / "etc/link").symlink_to("app/conf")
    os.utime(top / "etc/app/conf", (1, 1))
    found, _, outputs = build(OverlaySpec(), source=top)
    assert [(name, oct(one.mode), one.mtime, one.uid) for name, one in found.items()] == [
        ("etc", "0o755", EPOCH, 0), ("etc/app", "0o755", EPOCH, 0), ("etc/app/conf", "0o644", EPOCH, 0),
        ("etc/app/run", "0o755", EPOCH, 0), ("etc/link", "0o777", EPOCH, 0),
    ]  # fmt: skip
    assert found["etc/link"].linkname == "app/conf"
    (only,) = load(store.cas.read(outputs["stack"]))
    assert (only.layer, only.index) == (outputs["layer"], outputs["index"])


def test_files_dirs_links_and_removals(build: Build, store: Store, tmp_path: Path) -> None:
    (tmp_path / "motd").write_text("from a file")
    spec = OverlaySpec(
        files={
            "/etc/inline": FileSpec(content="text\n", mode="0600", owner=1, group=2),
            "etc/motd": FileSpec(source="motd"),
        },
        dirs={"srv/data": FolderSpec(mode="1770", owner=33, group=33)},
        links={"etc/localtime": "/usr/share/zoneinfo/UTC"},
        remove=("etc/gone",),
    )
    found, _, outputs = build(spec, **{"files.etc/motd.source": tmp_path / "motd"})
    assert set(found) == {
        "etc", "etc/inline", "etc/motd", "etc/localtime", "etc/.wh.gone", "srv", "srv/data",
    }  # fmt: skip
    inline, data = found["etc/inline"], found["srv/data"]
    assert (inline.mode, inline.uid, inline.gid) == (0o600, 1, 2)
    assert (data.mode, data.uid, data.gid) == (0o1770, 33, 33)
    assert content(store, outputs, "etc/inline") == b"text\n"
    assert content(store, outputs, "etc/motd") == b"from a file"
    assert found["etc/localtime"].linkname == "/usr/share/zoneinfo/UTC"


def test_the_bytes_are_these(build: Build) -> None:
    spec = OverlaySpec(files={"etc/hostname": FileSpec(content="kairos\n")}, links={"etc/a": "hostname"})
    _, _, outputs = build(spec)
    assert (
        outputs["layer"].digest == "sha256:1228cf85d21e1c4e573793bdaab52bcebed6ad0d1e03e6e9653bac5ff07f01ff"
    )


def test_owners_and_modes_by_glob_the_last_counts(build: Build) -> None:
    spec = OverlaySpec(
        files={"home/u/.ssh/key": FileSpec(), "home/u/x": FileSpec(), "etc/x": FileSpec()},
        links={"home/u/l": "x"},
        owners={"home/u": "1000:1000", "home/u/*": "1000:1000", "*/x": "5:6"},
        modes={"home/u/*": "0640", "home/u/.ssh": "0700", "/etc/x": "4755"},
    )
    found, _, _ = build(spec)
    assert (found["home/u"].uid, found["home"].uid) == (1000, 0)
    assert (found["home/u/.ssh"].mode, found["home/u/.ssh/key"].mode) == (0o700, 0o640)
    assert (found["home/u/x"].uid, found["home/u/x"].gid, found["etc/x"].uid) == (5, 6, 5)
    assert (found["home/u/l"].mode, found["home/u/l"].uid, found["etc/x"].mode) == (0o777, 1000, 0o4755)


def test_templates_know_declared_variables_only(build: Build, store: Store) -> None:
    files = {
        "etc/a": FileSpec(content="${host} ${HOME} $host ${ host }"),
        "etc/b": FileSpec(content="${host}"),
        "etc/c": FileSpec(content="${hots} ${x}"),
    }
    spec = OverlaySpec(files=files, templates=("etc/a", "etc/c"), vars={"host": "kairos"})
    with pytest.raises(Problems) as caught:
        build(spec)
    assert [one.reason for one in caught.value.problems] == ["template-variable"] * 3
    assert "'host'" in caught.value.problems[1].hint
    spec = OverlaySpec(files=files, templates=("etc/a",), vars={"host": "${x}", "HOME": "/"})
    _, _, outputs = build(spec)
    assert content(store, outputs, "etc/a") == b"${x} / $host ${ host }", (
        "what a variable holds is not replaced"
    )
    assert content(store, outputs, "etc/b") == b"${host}"


def test_merged_usr_is_kept_and_said(build: Build, tmp_path: Path) -> None:
    (tmp_path / "o/lib/systemd").mkdir(parents=True)
    (tmp_path / "o/lib/systemd/x").touch()
    (tmp_path / "o/usr/lib").mkdir(parents=True)
    spec = OverlaySpec(files={"bin/tool": FileSpec()}, links={"sbin": "usr/sbin"})
    found, task, _ = build(spec, source=tmp_path / "o")
    assert set(found) == {
        "usr",
        "usr/lib",
        "usr/lib/systemd",
        "usr/lib/systemd/x",
        "usr/bin",
        "usr/bin/tool",
        "sbin",
    }
    assert [note.split("/")[0] for note in task.notes] == ["bin", "lib"]
    kept, task, _ = build(OverlaySpec(files={"bin/tool": FileSpec()}, split_usr=True))
    assert set(kept) == {"bin", "bin/tool"} and not task.notes


def test_folders_that_others_give_their_permissions_are_not_touched(build: Build, tmp_path: Path) -> None:
    (tmp_path / "o/root").mkdir(parents=True)
    (tmp_path / "o/root/.profile").touch()
    found, _, _ = build(OverlaySpec(files={"etc/sudoers.d/x": FileSpec()}), source=tmp_path / "o")
    assert set(found) == {"root/.profile", "etc", "etc/sudoers.d/x"}
    found, _, _ = build(OverlaySpec(dirs={"root": FolderSpec(mode="0700")}))
    assert found["root"].mode == 0o700


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "", "/", "a//b", "./a", "etc/.wh.x", "etc/.wh..wh..opq"]
)
def test_escapes_are_refused(build: Build, path: str) -> None:
    with pytest.raises(KbuildError) as caught:
        build(OverlaySpec(files={path: FileSpec()}))
    assert caught.value.reason == "overlay-path"


def test_a_file_and_a_folder_of_one_name(build: Build) -> None:
    with pytest.raises(KbuildError) as caught:
        build(OverlaySpec(files={"a": FileSpec(), "a/b": FileSpec()}))
    assert caught.value.reason == "overlay-path"


def test_a_recipe_is_told_where(tmp_path: Path) -> None:
    text = b"""
version: 1
nodes:
  o:
    kind: overlay
    files: {"../../etc/passwd": {content: x}}
    links: {"a/../b": x}
    owners: {etc: root}
"""
    with pytest.raises(Problems) as caught:
        parse(text, "r.yaml", TABLE, workspace=Workspace(tmp_path, Cache(tmp_path / "c")))
    assert [one.origin.line for one in caught.value.problems if one.origin] == [6, 7, 8]


def test_a_recipe_reaches_the_build(build: Build, store: Store, tmp_path: Path) -> None:
    from kairosbuild.recipe.instances import typed_spec

    (tmp_path / "motd").write_text("hello")
    text = b"""
version: 1
nodes:
  o: {kind: overlay, files: {etc/motd: {source: motd, mode: 600}, etc/x: {content: "$${y}"}}}
"""
    recipe = parse(text, "r.yaml", TABLE, workspace=Workspace(tmp_path, Cache(tmp_path / "c")))
    (node,) = recipe.nodes
    paths = {role: tmp_path / path for role, path in node.sources.items()}
    found, _, outputs = build(typed_spec(OverlaySpec, node), **paths)
    assert found["etc/motd"].mode == 0o600
    assert content(store, outputs, "etc/motd") == b"hello" and content(store, outputs, "etc/x") == b"${y}"
