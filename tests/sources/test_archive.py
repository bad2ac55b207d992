from collections.abc import Callable
from pathlib import Path

import pytest
from local_archive import Archive, Key, Server

from kairosbuild.core.errors import HostError, InputError
from kairosbuild.sources.debian import Suite, closure, open_archive, suites
from kairosbuild.sources.stanza import alternatives, fields

Fetch = Callable[..., Path]


@pytest.fixture
def keyring(archive: Archive, tmp_path: Path) -> Path:
    return archive.key.keyring(tmp_path / "archive.pgp")


@pytest.fixture
def small(archive: Archive) -> Archive:
    archive.add("shell", "5.2", Depends="libc (>= 2), base | fallback", Pre_Depends="loader", Essential="yes")
    archive.add("shell", "5.10", Depends="libc, base | fallback", Pre_Depends="loader", Essential="yes")
    archive.add("libc", "1:2.41", Depends="tz")
    archive.add("loader", Depends="libc:any (>= 2)")
    archive.add("fallback", Depends="shell")
    archive.add("zones", Provides="tz (= 1), clock")
    archive.add("another-zones", Provides="tz")
    archive.add("broken", Depends="nowhere")
    archive.publish()
    return archive


def names(fetch: Fetch, keyring: Path, *wanted: str, without: tuple[str, ...] = ()) -> list[str]:
    opened = open_archive([Suite("debian", "trixie")], "amd64", fetch, keyring=keyring)
    return [f"{p.name} {p.version}" for p in closure(opened.index, wanted, without)]


def test_closure(small: Archive, fetch: Fetch, keyring: Path) -> None:
    expected = ["another-zones 1", "fallback 1", "libc 1:2.41", "loader 1", "shell 5.10"]
    assert names(fetch, keyring, "shell") == expected


def test_one_already_taken_comes_before_the_first(small: Archive, fetch: Fetch, keyring: Path) -> None:
    assert names(fetch, keyring, "zones", "libc") == ["libc 1:2.41", "zones 1"]


def test_what_is_left_out(small: Archive, fetch: Fetch, keyring: Path) -> None:
    assert names(fetch, keyring, "shell", without=("libc", "fallback")) == ["loader 1", "shell 5.10"]
    assert names(fetch, keyring, "libc", without=("libc", "another-zones"))[0] == "libc 1:2.41"


def test_digests_are_those_of_the_verified_index(small: Archive, fetch: Fetch, keyring: Path) -> None:
    opened = open_archive([Suite("debian", "trixie")], "amd64", fetch, keyring=keyring)
    package = opened.newest("libc")
    assert package.uri == "debian:pool/main/l/libc/libc_2.41_amd64.deb"
    assert fetch(package.uri, digest=package.digest, size=package.size).stat().st_size == package.size
    found = opened.index.at(package.uri, package.digest)
    assert found is not None and found["Depends"] == "tz"
    assert opened.index.at(package.uri, "sha256:" + "0" * 64) is None
    assert opened.releases[0].date == "Sat, 12 Sep 2026 07:55:41 UTC"


def test_what_a_request_can_reach(small: Archive, fetch: Fetch, keyring: Path) -> None:
    index = open_archive([Suite("debian", "trixie")], "amd64", fetch, keyring=keyring).index
    reached = index.within_reach(["loader"], ["Depends"])
    assert reached == {"loader", "libc", "zones", "another-zones"}
    ((label, part),) = index.part(reached | {"shell"}).items()
    assert label == "debian_dists_trixie_main_binary-amd64_Packages"
    assert [fields(p)["Package"] for p in part.decode().strip().split("\n\n")] == [
        "another-zones", "libc", "loader", "shell", "shell", "zones",
    ]  # fmt: skip


UNKNOWN = {"libcc": "'libc'", "broken": "", "qqq": ""}


@pytest.mark.parametrize(("name", "hint"), UNKNOWN.items())
def test_unknown_packages(small: Archive, fetch: Fetch, keyring: Path, name: str, hint: str) -> None:
    with pytest.raises(InputError) as error:
        names(fetch, keyring, name)
    assert error.value.reason == "package-unknown"
    assert hint in error.value.hint


def test_a_component_that_is_not_there(small: Archive, fetch: Fetch, keyring: Path) -> None:
    with pytest.raises(InputError) as error:
        open_archive([Suite("debian", "trixie", ("main", "contrib"))], "amd64", fetch, keyring=keyring)
    assert error.value.reason == "debian-component"


def test_another_suite_under_this_name(archive: Archive, fetch: Fetch, keyring: Path) -> None:
    archive.add("a")
    archive.publish("bookworm")
    archive.files["dists/trixie/InRelease"] = archive.files["dists/bookworm/InRelease"]
    with pytest.raises(HostError) as error:
        names(fetch, keyring, "a")
    assert error.value.reason == "wrong-suite"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("other", "wrong-digest"), ("longer", "too-large"), ("short", "truncated"), ("404", "file-gone")],
)
def test_an_index_that_was_not_signed_for(
    small: Archive, server: Server, fetch: Fetch, keyring: Path, fault: str, reason: str
) -> None:
    server.faults = {path: [fault] for path in small.files if "by-hash" in path}
    with pytest.raises(HostError) as error:
        names(fetch, keyring, "shell")
    assert error.value.reason == reason


def test_a_release_that_another_signed(small: Archive, fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(HostError) as error:
        names(fetch, Key().keyring(tmp_path / "other.pgp"), "shell")
    assert error.value.reason == "bad-signature"


def test_suites_of_a_release() -> None:
    assert [s.label for s in suites("trixie")] == [
        "debian_dists_trixie", "debian_dists_trixie-updates", "debian-security_dists_trixie-security",
    ]  # fmt: skip
    assert [s.name for s in suites("sid")] == ["sid"]
    assert [s.name for s in suites("bookworm", security=False)] == ["bookworm"]
    suite = suites("sid", components=["main", "non-free-firmware"])[0]
    assert Suite.of(suite.json()) == suite


def test_relations() -> None:
    assert alternatives("aa (>= 1), bb:any | cc [amd64], d-e+") == [["aa"], ["bb", "cc"], ["d-e+"]]
    assert alternatives("") == []


def test_paragraphs() -> None:
    assert fields(b"A: 1\nB:\n x\n  y\nC: 2: 3\n") == {"A": "1", "B": "\nx\n y", "C": "2: 3"}
