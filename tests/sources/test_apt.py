from collections.abc import Callable
from pathlib import Path

import pytest
from local_archive import Archive

from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.sources import apt, debian
from kairosbuild.sources.dpkg import bootstrap_script, install_script

SIMULATED = b"""\
Reading package lists...
Inst libz (1.3 Debian:13.7/stable [amd64])
Conf libz (1.3 Debian:13.7/stable [amd64])
Remv old [0.9]
Inst tool [1.0] (2.0 Debian:13.7/stable, Debian-Security:13/stable-security [all]) []
Inst more (1 Debian:13.7/stable [amd64])
Conf tool (2.0 Debian:13.7/stable [all])
Conf more (1 Debian:13.7/stable [amd64])
"""


@pytest.fixture
def opened(archive: Archive, fetch: Callable[..., Path], tmp_path: Path) -> debian.Archive:
    archive.add("libz", "1.3", Depends="libc")
    archive.add("tool", "2.0", Architecture="all", Recommends="more")
    archive.add("tool", "1.0", Architecture="all")
    archive.add("more", "1")
    archive.add("mta", Provides="mail")
    archive.add("unrelated")
    archive.publish()
    keyring = archive.key.keyring(tmp_path / "k.pgp")
    return debian.open_archive([debian.Suite("debian", "trixie")], "amd64", fetch, keyring=keyring)


def test_a_plan(opened: debian.Archive) -> None:
    request = apt.Request(("tool",), remove=("old",))
    plan = apt.read_plan(SIMULATED, b"", request, opened)
    assert [(p.name, p.version, p.architecture) for p in plan.packages] == [
        ("libz", "1.3", "amd64"), ("tool", "2.0", "all"), ("more", "1", "amd64"),
    ]  # fmt: skip
    assert plan.steps == (
        ("unpack", ("libz",)), ("configure", ("libz",)),
        ("unpack", ("tool", "more")), ("configure", ("tool", "more")),
    )  # fmt: skip
    assert plan.removed == ("old",)


def test_a_removal_nobody_asked_for(opened: debian.Archive) -> None:
    with pytest.raises(InputError) as error:
        apt.read_plan(SIMULATED, b"", apt.Request(("tool",)), opened)
    assert error.value.reason == "package-removal"
    assert "old" in error.value.message


def test_a_version_that_no_index_has(opened: debian.Archive) -> None:
    with pytest.raises(NodeError) as error:
        apt.read_plan(SIMULATED.replace(b"1.3", b"1.4"), b"", apt.Request((), ("old",)), opened)
    assert error.value.reason == "apt-plan"


FAILURES = {
    "conflict": (
        b"The following packages have unmet dependencies:\n a : Conflicts: b but 1 is\nfailed 100\n",
        b"E: Unable to correct problems, you have held broken packages.\n",
        "a : Conflicts: b",
    ),
    "version": (b"failed 100\n", b"E: Version '9' for 'tool' was not found\n", "Version '9' for 'tool'"),
    "silence": (b"failed 139\n", b"", "does not say why"),
}


@pytest.mark.parametrize(("plan", "complaint", "expected"), FAILURES.values(), ids=FAILURES.keys())
def test_no_way(opened: debian.Archive, plan: bytes, complaint: bytes, expected: str) -> None:
    with pytest.raises(InputError) as error:
        apt.read_plan(plan, complaint, apt.Request(("a", "b")), opened)
    assert error.value.reason == "package-conflict"
    assert expected in error.value.message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tol", "package-unknown"),
        ("-o=x", "package-name"),
        ("?essential", "package-name"),
        ("a b", "package-name"),
        ("tool;reboot", "package-name"),
        ("tool/", "package-name"),
        ("", "package-name"),
    ],
)
def test_names_are_checked_before_apt_sees_them(opened: debian.Archive, name: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        apt.check(apt.Request((name,)), opened)
    assert error.value.reason == reason


@pytest.mark.parametrize("name", ["tool", "tool=1.0", "tool/trixie", "mail"])
def test_names_that_apt_may_see(opened: debian.Archive, name: str) -> None:
    apt.check(apt.Request((name,)), opened)


def test_apt_is_given_what_it_can_reach(opened: debian.Archive) -> None:
    label = "lists/mirror.invalid_debian_dists_trixie_main_binary-amd64_Packages"
    given = apt.inputs(apt.Request(("tool=2.0",), recommends=True), opened)
    assert b"Package: tool\n" in given[label] and b"Package: more\n" in given[label]
    assert b"Package: unrelated\n" not in given[label]
    assert b"Package: more\n" not in apt.inputs(apt.Request(("tool",)), opened)[label]
    installed = apt.status([{"Package": "libz", "Version": "1.2", "Architecture": "amd64"}])
    assert b"Package: libz\n" in apt.inputs(apt.Request(("tool",), status=installed), opened)[label]


def test_status() -> None:
    one = {"Package": "a", "Version": "1", "Architecture": "all", "Filename": "x", "Depends": "b"}
    text = apt.status([one])
    assert text == b"Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nDepends: b\n\n"
    newer = apt.status([{**one, "Version": "2"}, {**one, "Package": "c"}])
    assert apt.joined([text, newer]).count(b"Package: a\n") == 1
    assert b"Version: 2" in apt.joined([text, newer])


def test_scripts() -> None:
    script = install_script([("unpack", ["a", "b"]), ("configure", ["a"])], ["old"])
    lines = [line for line in script.splitlines() if line.startswith("run ")]
    assert lines == [
        "run --purge --force-depends old",
        "run --unpack --no-triggers /in/debs/a.deb /in/debs/b.deb",
        "run --configure --no-triggers a",
        "run --configure --pending",
    ]
    first, rest = (
        line
        for line in bootstrap_script(["x", "base-files", "a", "base-passwd"]).splitlines()
        if "--install" in line
    )
    assert first.endswith("/in/debs/base-passwd.deb /in/debs/base-files.deb")
    assert rest.endswith("/in/debs/a.deb /in/debs/x.deb")
