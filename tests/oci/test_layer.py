from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oci_layers import file, folder, hard, layer_items, link, member, whiteout, written

from kairosbuild.core.errors import InputError
from kairosbuild.oci.behind import SIZE
from kairosbuild.oci.entry import Entry, order
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, settle, write_layer
from kairosbuild.oci.reader import normalise, read_tar

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES_ANY = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=60
)
PATHS_ANY = st.lists(
    NAMES_ANY.filter(lambda name: name not in (".", "..") and not name.startswith(".wh.")),
    min_size=1,
    max_size=6,
).map("/".join)


def everything() -> list[Item]:
    """One of each, with what ustar can and cannot say."""
    deep = "/".join(["a-rather-long-folder-name"] * 5)
    odd = "/".join(["x" * 120, "y" * 120])
    return [
        (Entry("bin", "symlink", 0o777, target="usr/bin"), None),
        (Entry("dev", "dir", 0o755), None),
        (Entry("dev/null", "char", 0o666, major=1, minor=3), None),
        (Entry("dev/sda", "block", 0o660, 0, 6, major=8, minor=0), None),
        (Entry("etc", "dir", 0o755, mtime=1_700_000_000), None),
        (Entry("etc/.wh.motd", "file"), b""),
        (Entry("etc/passwd", "file", 0o644, mtime=1_800_000_000), b"root:x:0:0::/root:/bin/sh\n"),
        (Entry("run/initctl", "fifo", 0o600), None),
        (
            Entry("usr/bin/ping", "file", 0o4755, xattrs=(("security.capability", bytes(range(20))),)),
            b"\x7fELF",
        ),
        (Entry("usr/bin/ping6", "hardlink", target="usr/bin/ping"), None),
        (Entry("usr/share/\udcff-not-utf-8-é", "file", 0o644, 3_000_000, 3_000_001), b"1" * 513),
        (Entry("var/lib/.wh..wh..opq", "file"), b""),
        (Entry(f"{deep}/file", "file"), b"prefix"),
        (Entry(f"{odd}/file", "file"), b"pax"),
        (Entry("long-link", "symlink", 0o777, target="t" * 101), None),
    ]


def test_the_bytes_of_a_layer_and_its_index_never_change() -> None:
    data, index = written(everything(), 1_750_000_000)
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / "oci-layer.tar").write_bytes(data)
        (GOLDEN / "oci-layer.index.json").write_bytes(index.dumps())
    assert data == (GOLDEN / "oci-layer.tar").read_bytes()
    assert index.dumps() == (GOLDEN / "oci-layer.index.json").read_bytes()


def test_the_standard_library_reads_the_same_from_it() -> None:
    data, index = written(everything(), 1_750_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {item.name: item for item in tar}
    assert list(members) == list(index.paths())
    for place in index:
        entry, found = place.entry, members[place.entry.path]
        assert (found.mode, found.uid, found.gid, found.mtime) == (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
        )
        assert (found.linkname, found.devmajor, found.devminor) == (entry.target, entry.major, entry.minor)
        assert found.size == entry.size and found.offset_data == place.data
        assert (found.uname, found.gname) == ("", "")
    assert members["usr/bin/ping"].pax_headers["SCHILY.xattr.security.capability"].encode() == bytes(
        range(20)
    )


@settings(deadline=None)
@given(layer_items(), st.randoms())
def test_order_of_entries_changes_no_byte(items: list[Item], dice) -> None:
    shuffled = list(items)
    dice.shuffle(shuffled)
    assert written(shuffled)[0] == written(items)[0]


@settings(deadline=None)
@given(layer_items())
def test_what_is_written_reads_back(items: list[Item]) -> None:
    data, index = written(items)
    back = [(entry, content.read() if content else None) for entry, content in read_tar(io.BytesIO(data))]
    assert [entry for entry, _ in back] == [place.entry for place in index]
    assert [(e.path, c or b"") for e, c in back] == [(e.path, c or b"") for e, c in settle(items)]
    again = io.BytesIO()
    assert normalise(io.BytesIO(data), again, 0) == index.dumps()
    assert again.getvalue() == data


@settings(deadline=None)
@given(
    PATHS_ANY,
    st.integers(0, 0o7777),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**33 - 1),
    st.dictionaries(st.text("abc.é", min_size=1, max_size=20).map("user.".__add__), st.binary(max_size=200)),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=300),
)
def test_every_field_survives(
    path: str, mode: int, owner: int, time: int, xattrs: dict[str, bytes], to: str
) -> None:
    entries = [
        Entry(path, "file", mode, owner, owner // 2, 3, "", tuple(sorted(xattrs.items())), time),
        Entry(path, "symlink", 0o777, target=to, mtime=time),
    ]
    for entry in entries:
        data, index = written([(entry, b"abc" if entry.type == "file" else None)], 2**33)
        assert (
            [place.entry for place in index] == [found for found, _ in read_tar(io.BytesIO(data))] == [entry]
        )
        assert Index.loads(index.dumps()).dumps() == index.dumps()


def test_a_folder_comes_directly_before_what_is_in_it() -> None:
    _, index = written([file("a/b"), file("a-b"), folder("a"), file("a.b"), file("a/b.c")])
    assert list(index.paths()) == ["a", "a/b", "a/b.c", "a-b", "a.b"]
    assert sorted(index.paths(), key=order) == list(index.paths())


def test_times_are_clamped_or_flat() -> None:
    items = [(Entry(path, "file", mtime=time), b"") for path, time in (("new", 9), ("old", 3), ("odd", -3))]
    out = io.BytesIO()
    times = {place.entry.path: place.entry.mtime for place in Index.loads(write_layer(items, out, 5))}
    assert times == {"new": 5, "old": 3, "odd": 0}
    assert {p.entry.mtime for p in Index.loads(write_layer(items, out, 5, flat_time=True))} == {5}


def test_hard_links_follow_the_first_name_and_share_its_metadata() -> None:
    data, index = written([file("z", b"body", 0o600), hard("a", "m"), hard("m", "z")])
    assert {p.entry.path: (p.entry.type, p.entry.target, p.entry.mode) for p in index} == {
        "a": ("file", "", 0o600),
        "m": ("hardlink", "a", 0o600),
        "z": ("hardlink", "a", 0o600),
    }
    assert data[index["a"].data :][:4] == b"body"


def test_a_whiteout_beside_its_replacement_goes_or_makes_a_folder_opaque() -> None:
    items = [whiteout(".wh.f"), file("f"), whiteout(".wh.d"), folder("d"), file("d/!"), whiteout(".wh.x")]
    _, index = written(items)
    assert list(index.paths()) == [".wh.x", "d", "d/!", "d/.wh..wh..opq", "f"]


AROUND = [SIZE + near for near in (-1537, -1536, -1025, -1024, -513, -512, -511, -1, 0, 1)]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, *AROUND, 5 * SIZE + 7])
def test_content_of_any_size_from_anywhere(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "content"
    path.write_bytes(data)
    entry = Entry("f", "file", size=size)
    expected = written([(entry, data), file("g")])[0]
    assert expected[512 : 512 + size] == data
    assert written([(entry, path), file("g")])[0] == expected
    assert written([(entry, str(path)), file("g")])[0] == expected
    with path.open("rb") as stream:
        assert written([(entry, stream), file("g")])[0] == expected


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("size", [1, 100, SIZE, SIZE - 512, 3 * SIZE])
def test_content_that_changed_meanwhile_is_refused(tmp_path: Path, size: int, change: int) -> None:
    path = tmp_path / "content"
    path.write_bytes(bytes(size + change))
    for content in (path, io.BytesIO(bytes(size + change))):
        with pytest.raises(InputError) as error:
            written([(Entry("f", "file", size=size), content)])
        assert error.value.reason == "file-changed"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([file("a"), file("a")], "layer-duplicate"),
        ([file("a"), file("a/b")], "layer-path"),
        ([link("a", "b"), file("a/b")], "layer-path"),
        ([file("")], "layer-path"),
        ([file("/a")], "layer-path"),
        ([file("a/")], "layer-path"),
        ([file("../a")], "layer-path"),
        ([file("a/../b")], "layer-path"),
        ([file("./a")], "layer-path"),
        ([file("a//b")], "layer-path"),
        ([file("a\0b")], "layer-path"),
        ([file("a/.wh.")], "layer-path"),
        ([file("a/.wh...")], "layer-path"),
        ([file(".wh.a/b")], "layer-path"),
        ([folder(".wh.a")], "layer-path"),
        ([link(".wh.a", "b")], "layer-path"),
        ([file("n" * 256)], "layer-path"),
        ([file("é" * 128)], "layer-path"),
        ([file("/".join(["n" * 200] * 21))], "layer-path"),
        ([hard("a", "b"), hard("b", "a")], "layer-link"),
        ([hard("a", "b"), folder("b")], "layer-link"),
    ],
)
def test_what_is_no_layer_is_refused(items: list[Item], reason: str) -> None:
    with pytest.raises(InputError) as error:
        written(items)
    assert error.value.reason == reason


def test_a_writer_that_fails_fails_the_layer() -> None:
    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(28, "No space left on device")

    for items in ([file("a")], [file("a", bytes(9 * SIZE))]):
        with pytest.raises(OSError, match="No space"):
            write_layer(items, Full(), 0)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"entries":[],"schema":2}', b'{"entries":{},"schema":1}', b"\xff"]
)
def test_bytes_that_are_no_index_are_refused(data: bytes) -> None:
    with pytest.raises(InputError) as error:
        Index.loads(data)
    assert error.value.reason == "index-schema"


def test_an_index_finds_entries() -> None:
    _, index = written([file("a"), (member("dev/x", "char", major=1, minor=5), None)])
    assert "a" in index and "b" not in index and index.get("b") is None
    assert (index["dev/x"].entry.major, index["dev/x"].entry.minor) == (1, 5)
    assert len(index) == 2 and index["a"].end == index["dev/x"].offset
