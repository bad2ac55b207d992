"""Tars made to harm: each is refused for its reason, and nothing appears outside of the target."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from oci_layers import file, folder, hard, link, names_in, written

from kairosbuild.core.errors import InputError
from kairosbuild.oci.extract import extract
from kairosbuild.oci.parse import Limits
from kairosbuild.oci.reader import normalise, read_tar

END = bytes(1024)


def block(
    name: bytes = b"f", flag: bytes = b"0", data: bytes = b"", *, link: bytes = b"", **fields: Any
) -> bytes:
    """One member, its checksum right whatever nonsense is in it."""
    size = fields.get("size", b"%011o\0" % len(data))
    device = fields.get("device", (0, 0))
    parts = [
        name.ljust(100, b"\0")[:100],
        b"0000644\0",
        fields.get("uid", b"0000000\0"),
        b"0000000\0",
        size,
        b"00000000000\0",
        b" " * 8,
        flag,
        link.ljust(100, b"\0")[:100],
        fields.get("magic", b"ustar\x0000"),
        bytes(64),
        b"%07o\0%07o\0" % device,
        fields.get("prefix", b"").ljust(167, b"\0"),
    ]
    raw = bytearray(b"".join(parts))
    raw[148:156] = b"%06o\0 " % (sum(raw) + fields.get("checksum", 0))
    return bytes(raw) + data + bytes(-len(data) % 512)


def pax(flag: bytes = b"x", **records: str) -> bytes:
    body = b""
    for key, value in records.items():
        name = key.replace("__", ".")
        rest = len(name.encode()) + len(value.encode("utf-8", "surrogateescape")) + 3
        length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
        body += f"{length} {name}={value}\n".encode("utf-8", "surrogateescape")
    return block(b"pax", flag, body)


def binary(number: int) -> bytes:
    return bytes([0x80]) + number.to_bytes(11, "big")


HOSTILE: list[tuple[str, bytes, str]] = [
    ("nothing at all", b"", "tar-truncated"),
    ("no end mark", block(), "tar-truncated"),
    ("half a header", block()[:300], "tar-truncated"),
    ("content cut off", block(data=bytes(600))[:900], "tar-truncated"),
    ("padding cut off", block(data=bytes(600))[:1200], "tar-truncated"),
    ("end mark after a PAX header", pax(path="x") + END, "tar-truncated"),
    ("text", b"not a tar" * 200, "tar-number"),
    ("wrong checksum", block(checksum=1) + END, "tar-checksum"),
    ("wrong checksum behind a good member", block() + block(checksum=1) + END, "tar-checksum"),
    ("something behind the end", block() + END + block() + END, "tar-trailing"),
    ("..", block(b"../f") + END, "tar-path"),
    (".. inside", block(b"a/../../f") + END, "tar-path"),
    (".. at the end", block(b"a/..", b"5") + END, "tar-path"),
    (".. by PAX", pax(path="../../etc/passwd") + block() + END, "tar-path"),
    (".. by GNU long name", block(b"L", b"L", b"../f\0") + block() + END, "tar-path"),
    (".. by prefix", block(b"f", prefix=b"../..") + END, "tar-path"),
    ("absolute", block(b"/etc/passwd") + END, "tar-path"),
    ("absolute by PAX", pax(path="/etc/passwd") + block() + END, "tar-path"),
    ("NUL by PAX", pax(path="a\0b") + block() + END, "tar-path"),
    ("no name", block(b"") + END, "tar-path"),
    ("a root that is a file", block(b".") + END, "tar-path"),
    ("a whiteout of nothing", block(b"d/.wh.") + END, "tar-path"),
    ("a whiteout of its folder", block(b"d/.wh..") + END, "tar-path"),
    ("a whiteout of what is above", block(b"d/.wh...") + END, "tar-path"),
    ("something inside a whiteout", block(b".wh.d/f") + END, "tar-path"),
    ("a whiteout that is a folder", block(b".wh.d", b"5") + END, "tar-type"),
    ("a whiteout that is a link", block(b".wh.d", b"2", link=b"/") + END, "tar-type"),
    ("a root that is a link", block(b".", b"2", link=b"/") + END, "tar-path"),
    ("name too long", pax(path="n" * 256) + block() + END, "tar-path"),
    ("path too long", pax(path="/".join(["n" * 200] * 30)) + block() + END, "tar-path"),
    ("too deep", pax(path="a/" * 300 + "f") + block() + END, "tar-limit"),
    ("hard link out by ..", block(b"h", b"1", link=b"../../etc/passwd") + END, "tar-link"),
    ("hard link out by /", block(b"h", b"1", link=b"/etc/passwd") + END, "tar-link"),
    ("hard link to the root", block(b"h", b"1", link=b".") + END, "tar-link"),
    ("hard link to itself", block(b"h", b"1", link=b"./h") + END, "tar-link"),
    ("hard link to nothing", block(b"h", b"1") + END, "tar-link"),
    ("hard link with NUL", pax(linkpath="a\0b") + block(b"h", b"1") + END, "tar-link"),
    ("symlink to nothing", block(b"s", b"2") + END, "tar-link"),
    ("symlink with NUL", pax(linkpath="a\0b") + block(b"s", b"2") + END, "tar-link"),
    ("symlink too long", pax(linkpath="a" * 4096) + block(b"s", b"2") + END, "tar-link"),
    ("block device", block(b"tmp/sda", b"4", device=(8, 0)) + END, "tar-device"),
    ("character device", block(b"mem", b"3", device=(1, 1)) + END, "tar-device"),
    ("an overlayfs whiteout", block(b"dev/x", b"3") + END, "tar-device"),
    ("huge size in octal", block(size=b"77777777777\0") + END, "tar-limit-or-truncated"),
    ("huge size in binary", block(size=binary(1 << 62)) + END, "tar-limit"),
    ("negative size", block(size=b"\xff" * 12) + END, "tar-limit"),
    ("huge size by PAX", pax(size=str(1 << 62)) + block() + END, "tar-limit"),
    ("negative size by PAX", pax(size="-1") + block() + END, "tar-limit"),
    ("size that is no number", pax(size="1e3") + block() + END, "tar-number"),
    ("endless digits", pax(size="1" * 5000) + block() + END, "tar-number"),
    ("size in letters", block(size=b"size here!!\0") + END, "tar-number"),
    ("huge PAX header", block(b"p", b"x", size=binary(1 << 40)) + END, "tar-limit"),
    ("negative PAX header", block(b"p", b"x", size=b"\xff" * 12) + END, "tar-limit"),
    ("PAX record without length", block(b"p", b"x", b"path=f\n") + block() + END, "tar-pax"),
    ("PAX record too short", block(b"p", b"x", b"3 path=f\n") + block() + END, "tar-pax"),
    ("PAX record too long", block(b"p", b"x", b"99 path=f\n") + block() + END, "tar-pax"),
    ("PAX record of length 0", block(b"p", b"x", b"0 path=f\n") + block() + END, "tar-pax"),
    ("PAX record of no key", block(b"p", b"x", b"5 =f\n") + block() + END, "tar-pax"),
    ("global path", pax(b"g", path="f") + block() + END, "tar-pax"),
    ("global size", pax(b"g", size="1") + block() + END, "tar-pax"),
    ("sparse", pax(GNU__sparse__major="1") + block() + END, "tar-sparse"),
    ("old sparse", block(b"f", b"S") + END, "tar-type"),
    ("unknown type", block(b"f", b"Z") + END, "tar-type"),
    ("negative owner", block(uid=b"\xff" * 8) + END, "tar-owner"),
    ("huge owner", pax(uid=str(1 << 32)) + block() + END, "tar-owner"),
    ("huge attribute", pax(SCHILY__xattr__user__x="v" * 70_000) + block() + END, "tar-limit"),
    ("attribute without name", pax(SCHILY__xattr__="v") + block() + END, "tar-limit"),
]


@pytest.mark.parametrize(("data", "reason"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_each_is_refused_and_nothing_is_outside(tmp_path: Path, data: bytes, reason: str) -> None:
    limits = Limits(member=1 << 30)
    reason = reason.replace("tar-limit-or-truncated", "tar-limit")
    with pytest.raises(InputError) as error:
        for _, content in read_tar(io.BytesIO(data), limits=limits):
            assert content is None or content.read() is not None
    assert error.value.reason == reason and error.value.message
    with pytest.raises(InputError):
        normalise(io.BytesIO(data), io.BytesIO(), 0, limits=limits, scratch=tmp_path)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(InputError):
        extract(tmp_path / "a.tar", tmp_path / "tree", owners="dropped", overlay=False)
    assert names_in(tmp_path) == ["a.tar", "tree"]


THROUGH: list[tuple[str, bytes]] = [
    ("link, then a file through it", block(b"l", b"2", link=b"../outside") + block(b"l/f", data=b"x") + END),
    ("absolute link, then a file", block(b"l", b"2", link=b"{outside}") + block(b"l/f", data=b"x") + END),
    ("link, then a folder through it", block(b"l", b"2", link=b"../outside") + block(b"l/d/", b"5") + END),
    (
        "link to a link",
        block(b"k", b"2", link=b"..") + block(b"l", b"2", link=b"k/outside") + block(b"l/f") + END,
    ),
    (
        "hard link to a link, then through it",
        block(b"k", b"2", link=b"../outside") + block(b"l", b"1", link=b"k") + block(b"l/f") + END,
    ),
    (
        "hard link through a link",
        block(b"l", b"2", link=b"../outside") + block(b"h", b"1", link=b"l/mine") + END,
    ),
]


@pytest.mark.parametrize("data", [row[1] for row in THROUGH], ids=[row[0] for row in THROUGH])
def test_nothing_is_written_through_a_link(tmp_path: Path, data: bytes) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (tmp_path / "a.tar").write_bytes(data.replace(b"{outside}", os.fsencode(outside)[:9].ljust(9, b"/")))
    with pytest.raises(InputError) as error:
        extract(tmp_path / "a.tar", tmp_path / "tree", owners="dropped", overlay=False)
    assert error.value.reason in ("extract-link", "tar-checksum")
    assert names_in(outside) == ["mine"] and (outside / "mine").stat().st_nlink == 1


def test_a_layer_with_content_beneath_a_link_cannot_be_normalised() -> None:
    data = block(b"l", b"2", link=b"/etc") + block(b"l/f", data=b"x") + END
    with pytest.raises(InputError) as error:
        normalise(io.BytesIO(data), io.BytesIO(), 0)
    assert error.value.reason == "layer-path"


@pytest.mark.parametrize("limits", [Limits(members=2), Limits(total=2000), Limits(member=10)])
def test_limits_hold(limits: Limits) -> None:
    data = block(b"a") + block(b"b", data=bytes(600)) + block(b"c") + END
    with pytest.raises(InputError) as error:
        list(read_tar(io.BytesIO(data), limits=limits))
    assert error.value.reason == "tar-limit"


def foreign(build: Callable[[tarfile.TarFile], None], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        build(tar)
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers_archives_become_the_same_layer(form: int) -> None:
    long = "/".join(["folder-of-some-length"] * 4) + "/f"

    def build(tar: tarfile.TarFile) -> None:
        for name, kind, target in (
            ("./", tarfile.DIRTYPE, ""),
            ("./z", tarfile.REGTYPE, ""),
            ("./a/", tarfile.DIRTYPE, ""),
            ("./a/l", tarfile.SYMTYPE, "/etc/x"),
            ("./h", tarfile.LNKTYPE, "./z"),
            (f"./{long}", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.uname, info.mtime = kind, target, "someone", 7
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o777 if kind == tarfile.SYMTYPE else 0o644
            info.size = 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x"))

    out = io.BytesIO()
    normalise(io.BytesIO(foreign(build, form)), out, 0)
    expected = [file("z"), folder("a"), link("a/l", "/etc/x"), hard("h", "z"), file(long)]
    assert (
        out.getvalue() == written((replace(entry, uid=0, gid=0), content) for entry, content in expected)[0]
    )


def test_old_tars_without_magic_and_with_signed_checksums_are_read() -> None:
    v7 = block(b"d/", b"\0", magic=bytes(8)) + block(b"d/\xe9", b"\0", b"x", magic=bytes(8)) + END
    assert [(entry.path, entry.type) for entry, _ in read_tar(io.BytesIO(v7))] == [
        ("d", "dir"),
        ("d/\udce9", "file"),
    ]
    signed = bytearray(block(b"\xe9"))
    signed[148:156] = b"%06o\0 " % (sum(signed[:148]) + 256 + sum(signed[156:]) - 256)
    assert [entry.path for entry, _ in read_tar(io.BytesIO(bytes(signed) + END))] == ["\udce9"]


def test_a_time_no_filesystem_holds_becomes_the_latest_it_does(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pax(mtime="9" * 20) + block() + pax(mtime="-5.5") + block(b"g") + END)
    extract(tmp_path / "a.tar", tmp_path / "tree", owners="dropped", overlay=False)
    assert (tmp_path / "tree/f").stat().st_mtime == 2**33 - 1 and (tmp_path / "tree/g").stat().st_mtime == 0


def test_the_last_of_two_members_with_one_name_wins() -> None:
    data = block(b"f", data=b"first") + block(b"g") + block(b"./f", data=b"last") + END
    out = io.BytesIO()
    normalise(io.BytesIO(data), out, 0)
    found = {entry.path: content.read() for entry, content in read_tar(io.BytesIO(out.getvalue())) if content}
    assert found == {"f": b"last", "g": b""}
