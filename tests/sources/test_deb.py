import io
import shutil
import subprocess
from pathlib import Path

import pytest
from local_archive import make_deb, make_tar

from kairosbuild.core.errors import InputError
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Slice, write_layer
from kairosbuild.sources.deb import control, members, merged_links, unpack

CONTROL = "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a\n"


def deb(tmp_path: Path, data: bytes, method: str = "xz", name: str = "a.deb") -> Path:
    path = tmp_path / name
    path.write_bytes(make_deb(CONTROL, data, method))
    return path


def unpacked(tmp_path: Path, *debs: Path) -> dict[str, tuple[str, bytes | str]]:
    with (tmp_path / "spool").open("w+b") as spool:
        found: dict[str, tuple[str, bytes | str]] = {}
        for entry, content in unpack(debs, spool):
            if isinstance(content, Slice):
                spool.seek(content.offset)
                found[entry.path] = entry.type, spool.read(entry.size)
            else:
                found[entry.path] = entry.type, entry.target
        return found


@pytest.mark.parametrize("method", ["xz", "zst", ""])
def test_any_compression(tmp_path: Path, method: str) -> None:
    path = deb(tmp_path, make_tar({"usr/bin/a": b"1" * 3_000_000, "etc/a": b"2"}), method)
    got = unpacked(tmp_path, path)
    assert got["usr/bin/a"] == ("file", b"1" * 3_000_000)
    assert got["etc/a"] == ("file", b"2")
    assert control(path)["control"].decode() == CONTROL


def test_merged_usr(tmp_path: Path) -> None:
    data = make_tar(
        {
            "bin": None,
            "bin/sh": "dash",
            "lib": None,
            "lib/x/y": b"y",
            "lib64/ld.so": "../lib/ld.so",
            "binary/z": b"z",
        },
        hardlinks={"sbin/z": "bin/dash"},
    )
    got = unpacked(tmp_path, deb(tmp_path, data))
    assert got["usr/bin/sh"] == ("symlink", "dash")
    assert got["usr/lib/x/y"] == ("file", b"y")
    assert got["usr/sbin/z"] == ("hardlink", "usr/bin/dash")
    assert got["binary/z"] == ("file", b"z")
    assert got["usr/lib64/ld.so"][0] == "symlink"
    assert not [path for path in got if path.split("/")[0] in ("bin", "lib", "lib64", "sbin")]


def test_the_links_themselves_stay(tmp_path: Path) -> None:
    got = unpacked(tmp_path, deb(tmp_path, make_tar({"usr/bin": None, "bin": "usr/bin", "lib": "usr/lib"})))
    assert got["bin"] == ("symlink", "usr/bin")
    assert got["lib"] == ("symlink", "usr/lib")
    assert {e.path for e, _ in merged_links("arm64")} == {"bin", "sbin", "lib"}


def test_folders_that_are_only_implied(tmp_path: Path) -> None:
    got = unpacked(tmp_path, deb(tmp_path, make_tar({"lib/a/b/c": b"c"})))
    assert [path for path, (kind, _) in got.items() if kind == "dir"] == [
        "usr/lib/a/b",
        "usr/lib/a",
        "usr/lib",
        "usr",
    ]


def test_a_later_file_and_an_earlier_folder_win(tmp_path: Path) -> None:
    first = deb(tmp_path, make_tar({"usr/share": None, "usr/share/x": b"old"}), name="1.deb")
    second = deb(tmp_path, make_tar({"usr/share": None, "usr/share/x": b"new"}), name="2.deb")
    got = unpacked(tmp_path, first, second)
    assert got["usr/share/x"] == ("file", b"new")


def test_items_make_a_layer(tmp_path: Path) -> None:
    path = deb(tmp_path, make_tar({"usr/bin/a": b"a" * 100, "usr/bin/b": b"b"}))
    out = io.BytesIO()
    with (tmp_path / "spool").open("w+b") as spool:
        index = Index.loads(write_layer(unpack([path], spool), out, 1_700_000_000))
    assert list(index.paths()) == ["usr", "usr/bin", "usr/bin/a", "usr/bin/b"]
    place = index["usr/bin/a"]
    assert out.getvalue()[place.data : place.data + 100] == b"a" * 100


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"!<arch>\n",
        lambda data: data[:200],
        lambda data: data[:-300],
        lambda data: data.replace(b"data.tar.xz", b"date.tar.xz"),
        lambda data: b"PK" + data,
    ],
    ids=["empty", "no members", "head only", "cut", "no data", "no ar"],
)
def test_a_broken_package_is_refused(tmp_path: Path, spoil: object) -> None:
    path = deb(tmp_path, make_tar({f"usr/{n}": b"%d" % n * 999 for n in range(50)}))
    assert callable(spoil)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError) as error, (tmp_path / "spool").open("w+b") as spool:
        unpack([path], spool)
    assert error.value.reason in ("deb-format", "compressed", "tar-truncated")


@pytest.mark.parametrize("path", ["../etc/passwd", "usr/../../x"])
def test_no_way_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError) as error:
        for _, content in members(deb(tmp_path, make_tar({path: b"x"}))):
            assert content is not None
            content.read()
    assert error.value.reason == "tar-path"


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here to compare with")
def test_dpkg_deb_unpacks_the_same(tmp_path: Path) -> None:
    files = {"usr": None, "usr/a": b"a" * 70_000, "usr/b": "a", "usr/ü": b""}
    path = deb(tmp_path, make_tar(files))
    subprocess.run(["dpkg-deb", "-x", path, tmp_path / "tree"], check=True)
    got = unpacked(tmp_path, path)
    assert set(got) == {p.relative_to(tmp_path / "tree").as_posix() for p in (tmp_path / "tree").rglob("*")}
    assert got["usr/a"][1] == (tmp_path / "tree/usr/a").read_bytes()
