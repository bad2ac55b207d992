from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from oci_layers import file, folder, hard, layer_items, link, member, names_in, whiteout, written

from kairosbuild.core.errors import InputError
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, settle, write_layer
from kairosbuild.oci.merge import merge
from kairosbuild.oci.tree import extract, scan, write_tree

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def layer_of(root: Path, *, overlay: bool = False) -> bytes:
    out = io.BytesIO()
    write_tree(root, out, 0, overlay=overlay)
    return out.getvalue()


def unpacked(items: list[Item], into: Path, *, owners: bool = False, overlay: bool = False) -> Path:
    tar = into.with_name(into.name + ".tar")
    tar.write_bytes(written(items)[0])
    extract(tar, into, owners="kept" if owners else "dropped", overlay=overlay)
    return into


def paths(root: Path, *, overlay: bool = False) -> list[str]:
    return [entry.path for entry, _ in settle(scan(root, overlay=overlay))]


@settings(deadline=None, max_examples=60)
@given(layer_items(whiteouts=False))
def test_what_is_unpacked_scans_as_the_same_layer(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as name:
        tree = unpacked(items, Path(name, "tree"), owners=True)
        assert layer_of(tree) == written(items)[0]
        assert written(list(scan(tree)))[0] == written(items)[0]


@settings(deadline=None, max_examples=30)
@given(layer_items(whiteouts=False))
def test_gnu_tar_and_ours_unpack_alike(items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as name:
        ours = unpacked(items, Path(name, "ours"), owners=True)
        theirs = Path(name, "theirs")
        theirs.mkdir()
        subprocess.run(["tar", "--same-permissions", "-C", theirs, "-xf", f"{name}/ours.tar"], check=True)
        assert layer_of(ours) == layer_of(theirs)


def test_umask_time_zone_and_place_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [folder("a", 0o777), file("a/b", mode=0o666), file("implied/c"), link("l", "a")]
    first = layer_of(unpacked(items, tmp_path / "one"))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    (tmp_path / "elsewhere").mkdir()
    before = os.umask(0o077)
    try:
        second = layer_of(unpacked(items, tmp_path / "elsewhere" / "two"))
    finally:
        os.umask(before)
        monkeypatch.undo()
        time.tzset()
    assert first == second
    assert stat.S_IMODE((tmp_path / "one" / "implied").stat().st_mode) == 0o755


def test_scan_tells_hard_links_and_leaves_sockets_out(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    os.link(tmp_path / "b", tmp_path / "a")
    (tmp_path / "s").symlink_to("b")
    os.link(tmp_path / "s", tmp_path / "t", follow_symlinks=False)
    os.mknod(tmp_path / "socket", stat.S_IFSOCK)
    os.mkfifo(tmp_path / "pipe")
    assert [(entry.path, entry.type, entry.target) for entry, _ in scan(tmp_path)] == [
        ("a", "file", ""),
        ("b", "hardlink", "a"),
        ("pipe", "fifo", ""),
        ("s", "symlink", "b"),
        ("t", "hardlink", "s"),
    ]


def test_scan_and_extract_keep_the_users_attributes_only(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_text("x")
    try:
        for name in ("user.mine", "user.overlay.origin"):
            os.setxattr(tree / "f", name, b"\0value\n")
    except OSError:
        pytest.skip("no user attributes here")
    ((entry, path),) = scan(tree)
    assert entry.xattrs == (("user.mine", b"\0value\n"),)
    again = unpacked([(entry, path)], tmp_path / "again")
    assert os.getxattr(again / "f", "user.mine") == b"\0value\n"


@root_only
def test_capabilities_owners_set_id_bits_and_devices_come_back(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02" + bytes([0, 0x20, 0, 0]) + bytes(12)
    items = [
        file("ping", mode=0o755, uid=0, gid=0, xattrs=(("security.capability", capability),)),
        file("su", mode=0o4755, uid=7, gid=8),
        (member("dev/null", "char", 0o666, major=1, minor=3), None),
        (member("link", "symlink", 0o777, target="su", uid=9, gid=9), None),
    ]
    try:
        tree = unpacked(items, tmp_path / "tree", owners=True)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP):
            pytest.skip("root without its rights")
        raise
    found = {entry.path: entry for entry, _ in scan(tree)}
    assert found["ping"].xattrs == (("security.capability", capability),)
    assert (found["su"].mode, found["su"].uid, found["su"].gid) == (0o4755, 7, 8)
    assert found["link"].uid == 9
    assert (found["dev/null"].type, found["dev/null"].major, found["dev/null"].minor) == ("char", 1, 3)


def test_without_owners_all_is_readable_and_nothing_has_rights(tmp_path: Path) -> None:
    items = [
        folder("closed", 0),
        file("closed/f", mode=0),
        file("su", mode=0o6755, uid=7, gid=7),
        (member("dev/sda", "block", major=8), None),
    ]
    tree = unpacked(items, tmp_path / "tree")
    assert (tree / "closed/f").read_bytes() == b"x"
    info = (tree / "su").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o755, os.geteuid())
    assert not (tree / "dev/sda").exists()


def test_whiteouts_stay_files_unless_an_overlay_is_wanted(tmp_path: Path) -> None:
    items = [whiteout(".wh.gone"), folder("d"), whiteout("d/.wh..wh..opq")]
    tree = unpacked(items, tmp_path / "plain")
    assert names_in(tree) == [".wh.gone", "d"]
    with pytest.raises(InputError) as error:
        paths(tree)
    assert error.value.reason == "tree-whiteout"


def overlay_possible(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    try:
        os.mknod(probe, stat.S_IFCHR, 0)
        os.setxattr(tmp_path, "user.overlay.opaque", b"n")
        os.removexattr(tmp_path, "user.overlay.opaque")
    except OSError:
        pytest.skip("no whiteouts or user attributes here")
    probe.unlink()


def test_whiteouts_become_overlayfs_ones_and_back(tmp_path: Path) -> None:
    overlay_possible(tmp_path)
    items = [
        whiteout(".wh.gone"),
        folder("d"),
        whiteout("d/.wh..wh..opq"),
        file("d/!"),
        whiteout("e/.wh.x"),
        folder("e"),
    ]
    tree = unpacked(items, tmp_path / "upper", overlay=True)
    assert stat.S_ISCHR((tree / "gone").lstat().st_mode) and (tree / "gone").lstat().st_rdev == 0
    assert os.getxattr(tree / "d", "user.overlay.opaque") == b"y"
    assert layer_of(tree, overlay=True) == written(items)[0]


def test_an_overlay_that_only_refers_to_what_is_below_is_refused(tmp_path: Path) -> None:
    overlay_possible(tmp_path)
    (tmp_path / "moved").mkdir()
    os.setxattr(tmp_path / "moved", "user.overlay.redirect", b"/old")
    with pytest.raises(InputError) as error:
        paths(tmp_path, overlay=True)
    assert error.value.reason == "overlay-redirect"


@root_only
def test_what_overlayfs_records_is_the_layer_that_makes_the_same_tree(tmp_path: Path) -> None:
    base = [
        folder("d"),
        file("d/old"),
        file("d/kept"),
        file("gone"),
        folder("e"),
        file("e/x"),
        file("t"),
        hard("u", "t"),
    ]
    lower = unpacked(base, tmp_path / "lower", owners=True)
    upper, work, merged = (tmp_path / name for name in ("upper", "work", "merged"))
    for made in (upper, work, merged):
        made.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
    if subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True
    ).returncode:
        pytest.skip("no overlayfs here")
    try:
        (merged / "gone").unlink()
        (merged / "d/old").unlink()
        (merged / "d/new").write_text("new")
        subprocess.run(
            "rm -r e && mkdir e && touch e/y && rm t && mkdir t", shell=True, check=True, cwd=merged
        )
        shown = layer_of(merged)
    finally:
        subprocess.run(["umount", merged], check=True)
    (tmp_path / "upper.tar").write_bytes(layer_of(upper, overlay=True))
    stack = []
    for tar, items in ((tmp_path / "lower.tar", base), (tmp_path / "upper.tar", scan(upper, overlay=True))):
        stack.append((tar, Index.loads(write_layer(items, io.BytesIO(), 0))))
    result = io.BytesIO()
    merge(stack, result, 0)
    assert result.getvalue() == shown


def test_extract_replaces_what_is_there(tmp_path: Path) -> None:
    before = [file("f", b"old"), link("l", "f"), folder("empty"), folder("d"), file("d/kept")]
    tree = unpacked(before, tmp_path / "t")
    unpacked([file("f", b"new"), folder("l"), file("empty"), folder("d", 0o700)], tree)
    assert (tree / "f").read_bytes() == b"new" and (tree / "l").is_dir() and not (tree / "l").is_symlink()
    assert (tree / "empty").is_file() and (tree / "d/kept").exists()
    with pytest.raises(InputError) as error:
        unpacked([file("d")], tree)
    assert error.value.reason == "extract-exists"


@pytest.mark.parametrize(
    "items",
    [
        [file("out/f")],
        [folder("out/d")],
        [link("out/l", "x")],
        [folder("deep/er"), file("deep/er/f")],
    ],
)
def test_links_in_the_target_lead_nowhere(tmp_path: Path, items: list[Item]) -> None:
    outside = tmp_path / "outside"
    (outside / "er").mkdir(parents=True)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "out").symlink_to(outside)
    (tree / "deep").symlink_to("../outside")
    with pytest.raises(InputError) as error:
        unpacked(items, tree)
    assert error.value.reason == "extract-link"
    assert names_in(outside) == ["er"] and not names_in(outside / "er")


def test_a_file_takes_the_place_of_a_link_and_is_not_written_through_it(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").symlink_to(tmp_path / "outside")
    unpacked([file("f", b"theirs")], tree)
    assert (tmp_path / "outside").read_text() == "mine" and (tree / "f").read_bytes() == b"theirs"


def test_a_hard_link_to_nothing_or_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").write_text("mine")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "out").symlink_to(tmp_path / "outside")
    for target in ("gone", "out/f", "out"):
        if target == "out":
            (tree / "out").unlink()
            (tree / "out").mkdir()
        with pytest.raises(InputError) as error:
            unpacked([hard("h", target)], tree)
        assert error.value.reason == "extract-link"
    assert (tmp_path / "outside" / "f").stat().st_nlink == 1
