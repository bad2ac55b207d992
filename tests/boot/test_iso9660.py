"""ISO 9660 as it is computed, read by xorriso and by GRUB, which own the format as much as anybody."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isos import extracted, xorriso
from peers import peer

from kairosbuild.boot import iso9660
from kairosbuild.boot.iso9660 import BLOCK, Boot, Tree, Volume
from kairosbuild.boot.sparse import Sparse

EPOCH = 86400 * 12000
FILES = {
    "boot/grub/core.img": b"core" * 3000,
    "boot/entries/os-1.cfg": b"an entry\n",
    f"layers/{'a' * 64}": b"layer" * 5000,
    f"layers/{'b' * 64}": b"",
    "install/grub/esp/boot/entries/recovery.cfg": b"deep\n",
    "A": b"upper",
    "a": b"lower",
    "folder.d/x": b"1",
    **{f"many/file number {number:03}.text": b"%d\n" % number for number in range(300)},
}


def written(
    path: Path, files: Mapping[str, bytes], boots: tuple[Boot, ...] = (Boot(iso9660.UEFI, 0),)
) -> Tree:
    tree = Tree({name: len(content) for name, content in files.items()})
    disk = Sparse(tree.end + 16 * BLOCK)
    disk.add_all(0, tree.pieces(Volume("KBUILD_TEST", EPOCH, disk.size), boots))
    for name, content in files.items():
        disk.add(tree.at[name], content)
    disk.write_raw(path)
    return tree


def test_every_file_comes_back_under_its_name(tmp_path: Path) -> None:
    written(tmp_path / "iso", FILES)
    assert extracted(tmp_path / "iso", tmp_path / "out") == FILES
    status = (tmp_path / "out/A").stat()
    assert (status.st_mode, int(status.st_mtime)) == (0o100444, EPOCH)
    assert ", KBUILD_TEST\n" in xorriso(tmp_path / "iso", "-toc")


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.lists(st.text("aZ9._- ü", min_size=1, max_size=40), min_size=1, max_size=4).map("/".join),
        st.binary(max_size=3000),
        min_size=1,
    )
)
def test_whatever_they_are_called(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    names = set(files)
    good = {
        path: content
        for path, content in files.items()
        if not any(part in (".", "..") for part in path.split("/"))
        and not any(path.startswith(f"{other}/") for other in names)
    }
    if good:
        folder = tmp_path_factory.mktemp("iso")
        written(folder / "iso", good)
        assert extracted(folder / "iso", folder / "out") == good


def test_identifiers_are_unique_and_sorted_where_no_long_names_are_read() -> None:
    paths = ["a", "A", "_000001", "b.c.d", "sub.d/x", "file-1", "FILE_1.TXT"]
    tree = Tree(dict.fromkeys(paths, 0))
    assert len(set(tree._named.values())) == len(tree._named)
    assert tree._named["FILE_1.TXT"] == b"FILE_1.TXT;1"


def test_a_file_of_more_than_4_gib_has_several_records(tmp_path: Path) -> None:
    size = (5 << 30) + 7
    tree = Tree({"large": size, "small": 3})
    disk = Sparse(tree.end + BLOCK)
    disk.add_all(0, tree.pieces(Volume("X", 0, disk.size), (Boot(iso9660.UEFI, 0),)))
    disk.add(tree.at["small"], b"yes")
    disk.write_raw(tmp_path / "iso")  # a hole where the large one is
    assert f" {size} " in xorriso(tmp_path / "iso", "-lsl", "/large")
    assert " 3 " in xorriso(tmp_path / "iso", "-lsl", "/small")


def test_firmware_old_and_new_finds_what_it_starts(tmp_path: Path) -> None:
    image = tmp_path / "iso"
    at = Tree({name: len(content) for name, content in FILES.items()})
    core, behind = at.at["boot/grub/core.img"], at.end
    written(image, FILES, (Boot(iso9660.BIOS, core, 4), Boot(iso9660.UEFI, behind)))
    told = xorriso(image, "-report_el_torito", "plain")
    rows = [line.split()[5:] for line in told.splitlines() if line.startswith("El Torito boot img")]
    assert rows == [
        ["1", "BIOS", "y", "none", "0x0000", "0x00", "4", str(core // BLOCK)],
        ["2", "UEFI", "y", "none", "0x0000", "0x00", "0", str(behind // BLOCK)],
    ]
    assert "El Torito img path :   1  /boot/grub/core.img" in told


def test_grub_reads_it(tmp_path: Path) -> None:
    written(tmp_path / "iso", FILES)
    read = [peer("grub-fstest", "grub-common"), tmp_path / "iso"]
    for path in (f"layers/{'a' * 64}", "boot/entries/os-1.cfg", "many/file number 299.text"):
        shown = subprocess.run([*read, "cat", f"(loop0)/{path}"], capture_output=True, check=True).stdout
        assert shown == FILES[path]
    listed = subprocess.run([*read, "ls", "(loop0)/many/"], capture_output=True, text=True, check=True).stdout
    assert listed.count(".text") == 300
