from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oci_layers import file, folder, hard, layer_items, link, whiteout, written

from kairosbuild.core.errors import InputError
from kairosbuild.oci.entry import hidden_by, is_opaque, is_whiteout, parent
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, settle
from kairosbuild.oci.merge import Union, merge
from kairosbuild.oci.tree import write_tree


def merged(stack, **options) -> tuple[bytes, Index]:
    out = io.BytesIO()
    made = merge(stack, out, 0, **options)
    return out.getvalue(), Index.loads(made)


def listed(index: Index) -> dict[str, str]:
    return {place.entry.path: place.entry.type for place in index}


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def really_a_folder(path: Path) -> bool:
    """Not one by way of a link."""
    return path.is_dir() and path.resolve() == path


def unpack_as_tar_does(root: Path, items: list[Item], tar: Path) -> None:
    """The oracle: whiteouts and folders made files are removed, all the rest unpacked by GNU tar."""
    for entry, _ in items:
        if is_whiteout(entry.path) and not really_a_folder(root / parent(entry.path)):
            continue
        if is_opaque(entry.path):
            for inside in list((root / parent(entry.path)).iterdir()):
                remove(inside)
        elif is_whiteout(entry.path):
            remove(root / hidden_by(entry.path))
        elif entry.type != "dir" and really_a_folder(root / entry.path):
            shutil.rmtree(root / entry.path)  # tar refuses to put a file where a folder with content is
    tar.write_bytes(written([item for item in items if not is_whiteout(item[0].path)])[0])
    command = ["tar", "--same-permissions", "-C", str(root), "-xf", str(tar)]
    subprocess.run(command, check=True, capture_output=True, umask=0o022)


def tree_of(layers: list[list[Item]], folder: Path) -> bytes:
    root = folder.resolve() / "root"
    root.mkdir()
    for items in layers:
        unpack_as_tar_does(root, settle(items), folder / "layer.tar")
    out = io.BytesIO()
    write_tree(root, out, 0)
    return out.getvalue()


def stack_in(folder: Path, layers: list[list[Item]]) -> list[tuple[Path, Index]]:
    stack = []
    for number, items in enumerate(layers):
        data, index = written(items)
        (folder / str(number)).write_bytes(data)
        stack.append((folder / str(number), index))
    return stack


@settings(deadline=None, max_examples=60)
@given(st.lists(layer_items(), min_size=1, max_size=4))
def test_merging_gives_what_unpacking_one_by_one_gives(layers: list[list[Item]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, index = merged(stack_in(folder, layers))
        assert data == tree_of(layers, folder)
        for place in index:
            assert data[place.offset : place.data][-512 + 257 :][:5] == b"ustar"
        if index.rows:
            assert place.end + 1024 == len(data)


@settings(deadline=None, max_examples=60)
@given(st.lists(layer_items(), min_size=2, max_size=4), st.data())
def test_merging_a_part_first_changes_nothing(layers: list[list[Item]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stack = stack_in(folder, layers)
        cut = data.draw(st.integers(1, len(layers) - 1))
        out = io.BytesIO()
        upper = Index.loads(merge(stack[cut:], out, 0, keep_whiteouts=True))
        (folder / "upper").write_bytes(out.getvalue())
        assert merged([*stack[:cut], (folder / "upper", upper)])[0] == merged(stack)[0]


def test_a_layer_that_ships_lib_hides_the_link_unless_told_to_go_through(stacked) -> None:
    stack = stacked(
        [folder("usr"), folder("usr/lib", 0o711), file("usr/lib/libc"), link("lib", "usr/lib")],
        [
            folder("lib", 0o700),
            folder("lib/modules"),
            file("lib/modules/a.ko"),
            hard("lib/modules/b.ko", "lib/modules/a.ko"),
        ],
    )
    assert listed(merged(stack)[1])["lib"] == "dir"
    through = merged(stack, through_links=True)[1]
    assert listed(through) == {
        "lib": "symlink",
        "usr": "dir",
        "usr/lib": "dir",
        "usr/lib/libc": "file",
        "usr/lib/modules": "dir",
        "usr/lib/modules/a.ko": "file",
        "usr/lib/modules/b.ko": "hardlink",
    }
    assert through["usr/lib"].entry.mode == 0o711
    assert through["usr/lib/modules/b.ko"].entry.target == "usr/lib/modules/a.ko"


def test_going_through_links_applies_whiteouts_there_and_refuses_two_files_in_one_place(stacked) -> None:
    base = [folder("usr"), folder("usr/lib"), file("usr/lib/old"), link("lib", "/usr/lib")]
    assert (
        "usr/lib/old"
        not in merged(stacked(base, [folder("lib"), whiteout("lib/.wh.old")]), through_links=True)[1]
    )
    twice = stacked(base, [folder("lib"), file("lib/x"), folder("usr"), folder("usr/lib"), file("usr/lib/x")])
    with pytest.raises(InputError) as error:
        merged(twice, through_links=True)
    assert error.value.reason == "merge-conflict"


def test_a_link_that_leads_in_a_circle_or_nowhere_is_hidden_as_overlayfs_would(stacked) -> None:
    stack = stacked([link("a", "b"), link("b", "a"), link("c", "gone")], [file("a/x"), file("c/x")])
    assert listed(merged(stack, through_links=True)[1]) == {
        "a": "dir",
        "a/x": "file",
        "b": "symlink",
        "c": "dir",
        "c/x": "file",
    }


def test_a_folder_only_implied_takes_its_metadata_from_below_or_0755(stacked) -> None:
    _, index = merged(stacked([folder("etc", 0o700)], [file("etc/a"), file("opt/b/c")]))
    assert index["etc"].entry.mode == 0o700
    assert (index["opt/b"].entry.mode, index["opt/b"].entry.uid) == (0o755, 0)


def test_what_remains_of_a_hard_link_keeps_the_content(stacked) -> None:
    data, index = merged(stacked([file("a", b"old"), hard("b", "a"), hard("c", "a")], [file("a", b"new")]))
    assert listed(index) == {"a": "file", "b": "file", "c": "hardlink"}
    assert index["c"].entry.target == "b"
    assert data[index["b"].data :][:3] == b"old"


def test_a_hard_link_to_a_file_of_a_lower_layer(stacked) -> None:
    data, index = merged(stacked([file("b", b"old")], [hard("a", "b")]))
    assert listed(index) == {"a": "file", "b": "hardlink"}
    assert data[index["a"].data :][:3] == b"old"
    with pytest.raises(InputError) as error:
        merged(stacked([file("b")], [hard("a", "gone")]))
    assert error.value.reason == "merge-link"


def test_kept_whiteouts_survive_what_upper_layers_do(stacked) -> None:
    stack = stacked([whiteout(".wh.a"), whiteout(".wh.b"), whiteout(".wh.c")], [folder("a"), file("b")])
    assert set(listed(merged(stack, keep_whiteouts=True)[1])) == {"a", "a/.wh..wh..opq", "b", ".wh.c"}
    assert listed(merged(stack)[1]) == {"a": "dir", "b": "file"}


def test_a_file_then_a_folder_still_hides_the_folder_of_lower_layers(stacked) -> None:
    stack = stacked([file("a")], [folder("a"), file("a/new")])
    assert set(listed(merged(stack, keep_whiteouts=True)[1])) == {"a", "a/.wh..wh..opq", "a/new"}


def test_a_layer_shorter_than_its_index_is_refused(stacked) -> None:
    stack = stacked([file("a", bytes(3000))])
    os.truncate(stack[0][0], 2000)
    with pytest.raises(InputError) as error:
        merged(stack)
    assert error.value.reason == "layer-truncated"


def test_the_union_answers_for_single_paths(stacked) -> None:
    union = Union()
    for _, index in stacked([file("a"), file("b")], [whiteout(".wh.a"), file("c/d")]):
        union.add(index)
    assert "a" not in union and "c" in union
    found = union.get("c/d")
    assert found is not None and found[0] == 1 and found[1].entry.size == 1
    assert [path for path, _ in union] == ["b", "c", "c/d"]
