"""What every family promises, as kbuild's user meets it: one suite, run over a small distribution of each.

A module of a family has a fixture `distribution` and says `from contract import *`. A distribution serves its
own repository on loopback; the packages `tool`, `library` (which `tool` needs), `other` and `enemy` (which
conflicts with `other`) are in it, each with the one file `usr/share/NAME/about`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from distros.serving import Served

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
RECIPE = """\
version: 1
name: small
nodes:
  base:  {{kind: base, image: "{base}"}}
  tools: {{kind: packages, on: base, install: [{install}]}}
  more:  {{kind: packages, on: tools, install: [other]}}
  side:  {{kind: packages, on: base, install: [other]}}
  os:    {{kind: image, layers: [base, tools, more]}}
"""

__all__ = [
    "test_a_changed_package_rebuilds_what_has_it",
    "test_a_conflict_is_told",
    "test_a_mirror_that_fails_is_one_clear_error",
    "test_a_package_can_be_removed_again",
    "test_a_package_that_does_not_exist_is_told_with_the_recipes_line",
    "test_exact_files_then_offline_then_equal_twice",
    "test_what_nobody_signed_is_refused",
    "test_what_the_index_does_not_say_is_refused",
    "work",
]


class Distribution(Protocol):
    """A small distribution. `files` are those of its mirror by path, `mirror` the name kbuild has for that."""

    mirror: str
    files: dict[str, bytes]

    def base(self, folder: Path) -> str:
        """Make the base image; how a recipe names it."""

    def add(self, name: str, version: str = "1", *, depends: str = "", conflicts: str = "") -> str:
        """Add a package; its path on the mirror."""

    def publish(self) -> None:
        """Write and sign the metadata anew."""

    def metadata(self) -> str:
        """The path of the file whose loss or damage is that of the repository."""

    def forge(self) -> None:
        """Sign the metadata with a key that nobody trusts."""

    def strip(self) -> None:
        """Take the signature away."""


class Work:
    """A workspace with the small recipe."""

    def __init__(self, folder: Path, distribution: Distribution) -> None:
        self.folder, self.distribution = folder, distribution
        self.served = Served(distribution.files)
        self.mirrors = self.served.url
        distribution.add("library")
        distribution.add("tool", depends="library")
        distribution.add("other")
        distribution.add("enemy", conflicts="other")
        distribution.publish()
        (folder / "BUILD.yaml").write_text("version: 1\nrecipes: [small.yaml]\n")
        self.base = distribution.base(folder / "image")
        self.write()

    def write(self, install: str = "tool") -> None:
        (self.folder / "small.yaml").write_text(RECIPE.format(base=self.base, install=install))

    def kbuild(self, *words: str, code: int = 0) -> dict[str, Any]:
        command = [sys.executable, "-m", "kairosbuild", *words, "--json", "--cache-dir", str(CACHE)]
        variable = f"KBUILD_MIRROR_{self.distribution.mirror.upper().replace('-', '_')}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), variable: self.mirrors}
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == code, done.stdout[-1500:] + done.stderr[-6000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "said": done.stderr}

    def refused(self, code: int, line: int = 5) -> tuple[str, str]:
        """The reason and the message of a lock that fails at this line, leaving no lock file."""
        (error,) = self.kbuild("lock", "small.yaml", code=code)["errors"]
        assert (error["origin"] or {}).get("line") == line, error
        assert not (self.folder / "small.lock").exists()
        return error["reason"], f"{error['message']}\n{error['hint']}"

    def layer(self, node: str) -> dict[str, bytes | None]:
        """The files of a node's layer."""
        self.kbuild("run", "small.yaml", node, "--no-publish", "-o", f"{node}.layer={node}.tar")
        with tarfile.open(self.folder / f"{node}.tar") as tar:
            return {m.name: (s.read() if (s := tar.extractfile(m)) else None) for m in tar}


@pytest.fixture
def work(tmp_path: Path, distribution: Distribution) -> Iterator[Work]:
    found = Work(tmp_path, distribution)
    yield found
    found.served.close()


def rows(work: Work, node: str) -> Mapping[str, Mapping[str, Any]]:
    """The packages of a node's lock by name."""
    lock = json.loads((work.folder / "small.lock").read_text())
    return {row["name"]: row for row in lock["nodes"][node]["data"]["packages"]}


def test_exact_files_then_offline_then_equal_twice(work: Work) -> None:
    work.kbuild("lock", "small.yaml")
    assert set(rows(work, "tools")) == {"tool", "library"}
    assert set(rows(work, "more")) == {"other"} == set(rows(work, "side"))
    for row in rows(work, "tools").values():
        assert set(row) >= {"name", "version", "arch", "digest", "size"} and row["digest"].startswith(
            "sha256:"
        )
    assert "127.0.0.1" not in (work.folder / "small.lock").read_text(), "a mirror is no part of a lock"
    tools = work.layer("tools")
    assert tools["usr/share/tool/about"] == b"tool 1\n" and tools["usr/share/library/about"] == b"library 1\n"
    assert "usr/share/other/about" not in tools
    more = work.layer("more")
    assert more["usr/share/other/about"] == b"other 1\n" and "usr/share/tool/about" not in more
    work.kbuild("run", "small.yaml", "os", "--no-publish")  # tools trees are Debian's, from its own mirror
    work.served.close()
    assert work.kbuild("run", "small.yaml", "os", "--offline", "--no-publish")["failed"] == {}
    work.kbuild("verify", "small.yaml", "os")


def test_a_changed_package_rebuilds_what_has_it(work: Work) -> None:
    work.kbuild("run", "small.yaml", "--no-publish")
    before = (work.folder / "small.lock").read_text()
    work.distribution.add("library", "2")
    work.distribution.publish()
    assert work.kbuild("run", "small.yaml", "--no-publish")["built"] == 0, "what is locked stays"
    assert (work.folder / "small.lock").read_text() == before
    work.kbuild("lock", "small.yaml", "--update")
    assert rows(work, "tools")["library"]["version"].startswith("2")
    again = work.kbuild("run", "small.yaml", "--no-publish")
    assert again["built"] == 3, "tools, more and os; neither base nor side"


def test_a_package_that_does_not_exist_is_told_with_the_recipes_line(work: Work) -> None:
    work.write("tol")
    reason, said = work.refused(2)
    assert reason == "package-unknown" and "tol" in said and "tool" in said


def test_a_conflict_is_told(work: Work) -> None:
    work.write("other, enemy")
    reason, said = work.refused(2)
    assert reason == "package-conflict" and "enemy" in said


def test_a_package_can_be_removed_again(work: Work) -> None:
    recipe = work.folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("on: tools, install: [other]", "on: tools, remove: [tool]"))
    work.kbuild("lock", "small.yaml")
    lock = json.loads((work.folder / "small.lock").read_text())
    assert "tool" in lock["nodes"]["more"]["data"]["removed"]
    more = work.layer("more")
    assert any(path in more for path in ("usr/share/tool/.wh.about", "usr/share/.wh.tool"))


@pytest.mark.parametrize("how", ["forge", "strip", "other"])
def test_what_nobody_signed_is_refused(work: Work, how: str) -> None:
    if how == "other":
        work.served.faults[work.distribution.metadata()] = "other"
    else:
        getattr(work.distribution, how)()
    reason, said = work.refused(3)
    if how == "other" and not getattr(work.distribution, "signed_metadata", True):
        assert reason == "repository-format", "packages are signed in this family, not what lists them"
        return
    assert reason == "bad-signature" and "sign" in said


def test_what_the_index_does_not_say_is_refused(work: Work) -> None:
    work.kbuild("lock", "small.yaml")
    (work.folder / "small.lock").unlink()
    path = work.distribution.add("tool", "3", depends="library")
    work.distribution.publish()
    work.served.faults[path] = "other"
    said = work.kbuild("run", "small.yaml", "--no-publish", code=3)  # some look into a file while they lock
    found = said.get("errors") or list(said["failed"].values())
    assert [one["reason"] for one in found] == ["wrong-digest"]


FAULTS = {
    "down": ("503", {"mirror-down", "download-failed"}),
    "truncates": ("cut", {"truncated"}),
    "stalls": ("stall", {"mirror-slow"}),
}


@pytest.mark.parametrize(("fault", "reasons"), FAULTS.values(), ids=FAULTS)
def test_a_mirror_that_fails_is_one_clear_error(
    work: Work, monkeypatch: pytest.MonkeyPatch, fault: str, reasons: set[str]
) -> None:
    monkeypatch.setenv("KBUILD_FETCH_TIMEOUT", "1" if fault == "stall" else "60")
    work.served.faults[work.distribution.metadata()] = fault
    reason, said = work.refused(3)
    assert reason in reasons and work.distribution.metadata() in said


def test_what_a_slow_mirror_does_not_deliver_the_next_one_does(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KBUILD_FETCH_TIMEOUT", "3")
    with contextlib.closing(Served(work.distribution.files)) as slow:
        slow.faults[work.distribution.metadata()] = "drip"
        work.mirrors = f"{slow.url} {work.served.url}"
        work.kbuild("lock", "small.yaml")
    assert work.distribution.metadata() in work.served.asked
