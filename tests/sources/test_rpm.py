"""RPM packages made and signed by rpm's own programs, and what is refused of those that were tampered with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distros.rpms import Rpm, Signer, build, repository

from kairosbuild.core.errors import HostError, InputError, KbuildError
from kairosbuild.oci.entry import Entry
from kairosbuild.sources.repomd import Metadata, Repository, open_repository
from kairosbuild.sources.rpm import members, read, unpack, verify


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("rpm") / "key", "Test <test@example.org>")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> Path:
    """A repository of three packages, the last one in two versions."""
    stage = tmp_path_factory.mktemp("stage")
    tool = Rpm("tool", "1.2", "3", epoch=1, requires=("lib >= 2",), provides=("virtual = 7",))
    tool.add("usr/bin/tool", b"#!/bin/sh\n", stage, 0o755).add("usr/bin/alias", "tool", stage)
    tool.add("usr/share/tool [1]", b"odd", stage).add("lib/modules/6/kernel/x.ko", b"module", stage)
    tool.files["usr/bin/same"] = Entry("usr/bin/same", "hardlink", 0o755, target="usr/bin/tool"), None
    old, new = (
        Rpm("lib", version).add(f"usr/lib/lib.so.{version}", b"l" * 5000, stage)
        for version in ("2.9", "2.10")
    )
    folder = tmp_path_factory.mktemp("repo") / "Packages"
    for some in ((tool, old), (new,)):
        build(some, folder, {}, {})
    signer.sign(sorted(folder.glob("*.rpm")))
    repository(folder.parent)
    signer.sign_metadata(folder.parent)
    return folder.parent


def file(packages: Path, name: str) -> Path:
    return next((packages / "Packages").glob(f"{name}-*.rpm"))


def test_a_package_says_what_it_is(packages: Path) -> None:
    rpm = read(file(packages, "tool"))
    assert (rpm.name, rpm.evr) == ("tool", ("1", "1.2", "3"))
    assert len(rpm.signatures) == 1


def test_its_files_come_out_at_their_places(packages: Path, tmp_path: Path) -> None:
    with (tmp_path / "spool").open("w+b") as spool:
        items = {entry.path: entry for entry, _ in unpack([file(packages, "tool")], spool)}
    assert items["usr/bin/alias"].target == "tool"
    assert items["usr/lib/modules/6/kernel/x.ko"].size == len(b"module")
    assert "usr/share/tool [1]" in items
    kinds = {items["usr/bin/tool"].type, items["usr/bin/same"].type}
    assert kinds == {"file", "hardlink"}, "one has the content, the other is a link to it"
    assert items["usr/bin/tool"].mode == 0o755


def test_the_key_that_signed_it_lets_it_pass(packages: Path, signer: Signer, tmp_path: Path) -> None:
    other = Signer(tmp_path / "other", "Other <other@example.org>").certificate()
    assert verify(file(packages, "lib"), [other, signer.certificate()], "lib").name == "lib"
    with pytest.raises(HostError) as error:
        verify(file(packages, "lib"), [other], "mirror:lib.rpm")
    assert error.value.reason == "bad-signature"
    assert "mirror:lib.rpm" in error.value.message


def _payload(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


def _header(data: bytes) -> bytes:
    at = data.rindex(b"\x8e\xad\xe8\x01")
    place = data.index(b"tool\0", at)
    return data[:place] + b"toolx"[1:5] + data[place + 4 :]


@pytest.mark.parametrize("spoil", [_payload, _header], ids=["payload", "header"])
def test_what_was_changed_is_refused(
    packages: Path, signer: Signer, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    changed = tmp_path / "tool.rpm"
    changed.write_bytes(spoil(file(packages, "tool").read_bytes()))
    with pytest.raises(HostError) as error:
        verify(changed, [signer.certificate()], "tool")
    assert error.value.reason == "bad-signature"


def test_an_unsigned_one_is_refused(signer: Signer, tmp_path: Path) -> None:
    (made,) = build([Rpm("plain").add("usr/bin/x", b"x", tmp_path)], tmp_path / "Packages", {}, {})
    with pytest.raises(HostError, match="not signed") as error:
        verify(made, [signer.certificate()], "plain")
    assert error.value.reason == "bad-signature"


@pytest.mark.parametrize("cut", [0, 50, 96, 120, 400])
def test_a_broken_one_is_an_error_of_its_own(packages: Path, tmp_path: Path, cut: int) -> None:
    broken = tmp_path / "broken.rpm"
    broken.write_bytes(file(packages, "tool").read_bytes()[:cut])
    with pytest.raises(InputError) as error:
        list(members(broken))
    assert error.value.reason in ("rpm-format", "tar-truncated")


# -- repositories ----------------------------------------------------------------------------------

HERE = Repository("fedora", "43/os")


def fetcher(root: Path, changes: dict[str, bytes] | None = None) -> Any:
    def fetch(uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        location = uri.removeprefix("fedora:43/os/")
        if changes and location in changes:
            place = root.parent / f"changed-{len(location)}"
            place.write_bytes(changes[location])
            return place
        if not (root / location).exists():
            raise HostError(f"{uri} does not exist", reason="file-gone")
        return root / location

    return fetch


def opened(packages: Path, **more: Any) -> Metadata:
    return open_repository(HERE, fetcher(packages), **more)


def test_a_repository_says_where_its_packages_are(packages: Path) -> None:
    metadata = opened(packages)
    assert metadata.names() == {"tool", "lib"}
    newest = metadata.named("lib")
    assert [one.package.version for one in newest] == ["2.10-1", "2.9-1"]
    (tool,) = metadata.named("tool")
    assert tool.package.version == "1:1.2-3"
    assert "virtual EQ 7" in tool.provides and "lib GE 2" in tool.requires
    assert tool.package.uri == f"fedora:43/os/Packages/{file(packages, 'tool').name}"
    assert tool.package.size == file(packages, "tool").stat().st_size
    at = metadata.at(tool.package.uri.removeprefix("fedora:43/os/"))
    assert at == tool
    assert metadata.at("Packages/none.rpm") is None


def test_signed_metadata(packages: Path, signer: Signer, tmp_path: Path) -> None:
    assert opened(packages, signed=True, certificates=[signer.certificate()]).names()
    other = Signer(tmp_path / "other", "Other <other@example.org>").certificate()
    with pytest.raises(HostError) as error:
        opened(packages, signed=True, certificates=[other])
    assert error.value.reason == "bad-signature"
    changed = (packages / "repodata/repomd.xml").read_bytes() + b"\n"
    with pytest.raises(HostError) as error:
        open_repository(
            HERE,
            fetcher(packages, {"repodata/repomd.xml": changed}),
            signed=True,
            certificates=[signer.certificate()],
        )
    assert error.value.reason == "bad-signature"


BAD = {
    "html": b"<html>Welcome to the hotel</html>",
    "no xml": b"\0\1",
    "empty": b"",
    "entities": b'<!DOCTYPE x [<!ENTITY a "aaaa">]><repomd>&a;</repomd>',
    "outside": (
        b'<repomd xmlns="http://linux.duke.edu/metadata/repo"><data type="primary">'
        b'<checksum type="sha256">00</checksum><location href="../../etc/passwd"/><size>1</size>'
        b"</data></repomd>"
    ),
    "weak": (
        b'<repomd xmlns="http://linux.duke.edu/metadata/repo"><data type="primary">'
        b'<checksum type="md5">00</checksum><location href="x"/><size>1</size></data></repomd>'
    ),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_metadata(packages: Path, text: bytes) -> None:
    with pytest.raises(KbuildError) as error:
        open_repository(HERE, fetcher(packages, {"repodata/repomd.xml": text}))
    assert error.value.reason == "repository-format"
