"""EFI partitions after a power cut, put in order by the machine's program and judged by fsck.fat and mtools."""

import io
import struct
import subprocess
from pathlib import Path

import pytest
from peers import peer

from kairosbuild.boot import fat
from kairosbuild.node import mending

FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"loader" * 3000,
    "EFI/Linux/os-1+4-1.efi": b"one" * 40_000,
    "EFI/Linux/os-2+3.efi": b"two" * 40_000,
    "boot/grub/grubenv": b"# GRUB Environment Block\n".ljust(1024, b"#"),
}


def partition(tmp_path: Path) -> Path:
    path = tmp_path / "esp"
    with path.open("wb") as out:
        out.truncate(40 << 20)
        for at, data in fat.build(fat.Volume(40 << 20, "ESP", 7), FILES):
            out.seek(at)
            out.write(data)
    return path


def mtools(path: Path, verb: str, *words: str, data: bytes = b"") -> bytes:
    command = [peer(verb, "mtools"), "-i", str(path), *words]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def fsck(path: Path) -> str:
    done = subprocess.run([peer("fsck.fat", "dosfstools"), "-n", path], capture_output=True, check=False)
    return "" if done.returncode == 0 else done.stdout.decode()


def short_entries(path: Path) -> dict[int, bytes]:
    """Where the short entry of each file is, with its content, found without the code under test."""
    data = path.read_bytes()
    found = {}
    for at in range(0, len(data), 32):
        entry = data[at : at + 32]
        if entry[11] == 0x20 and entry[0] not in (0, 0xE5, 0x2E) and entry[8:11] in (b"EFI", b"PAR"):
            found[at] = entry
    return found


def another_name(path: Path, name: str, of: bytes) -> None:
    """What a rename that was cut off half-way leaves: a second name of a file that begins with these bytes."""
    before = short_entries(path)
    mtools(path, "mcopy", "-", f"::{name}", data=b"for the name alone")
    (made,) = set(short_entries(path)) - set(before)
    with path.open("r+b") as disk:
        at = next(at for at, one in before.items() if content(path, one).startswith(of))
        disk.seek(made + 20)
        disk.write(before[at][20:22])
        disk.seek(made + 26)
        disk.write(before[at][26:32])


def content(path: Path, entry: bytes) -> bytes:
    cluster = struct.unpack_from("<H", entry, 20)[0] << 16 | struct.unpack_from("<H", entry, 26)[0]
    with path.open("rb") as disk:
        boot = disk.read(64)
        sector, per, reserved, copies = struct.unpack_from("<HBHB", boot, 11)
        start = (reserved + copies * struct.unpack_from("<I", boot, 36)[0]) * sector
        disk.seek(start + (cluster - 2) * per * sector)
        return disk.read(16)


def mended(path: Path) -> list[str]:
    with path.open("r+b") as disk:
        return mending.mend(disk)


def names(path: Path, folder: str) -> set[str]:
    return set(mtools(path, "mdir", "-b", f"::{folder}").decode().split())


def test_what_is_in_order_stays_as_it_is_byte_for_byte(tmp_path):
    path = partition(tmp_path)
    before = path.read_bytes()
    assert mended(path) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("second", "begins", "kept"),
    [
        ("EFI/Linux/os-1+5.efi", b"one", "os-1+4-1.efi"),
        ("EFI/Linux/os-3+3.efi", b"one", "os-3+3.efi"),
        ("EFI/Linux/kbuild.part", b"two", "os-2+3.efi"),
        ("EFI/Linux/OS_2.EFI", b"two", "os-2+3.efi"),
    ],
)
def test_of_two_names_of_a_file_one_is_forgotten_and_the_file_is_whole(tmp_path, second, begins, kept):
    path = partition(tmp_path)
    another_name(path, second, begins)
    assert "share clusters" in fsck(path)
    assert len(mended(path)) == 1
    assert fsck(path) == ""
    assert f"::/EFI/Linux/{kept}" in names(path, "EFI/Linux")
    assert len(names(path, "EFI/Linux")) == 2
    assert mtools(path, "mtype", f"::EFI/Linux/{kept}") == begins * 40_000
    assert mended(path) == []


def test_a_file_that_was_not_finished_is_forgotten_and_its_room_is_free_again(tmp_path):
    path = partition(tmp_path)
    mtools(path, "mcopy", "-", "::EFI/Linux/kbuild.part", data=b"x" * 300_000)
    mtools(path, "mcopy", "-", "::boot/grub/.grubenv.part", data=b"y" * 1024)
    with path.open("r+b") as disk:  # neither its chain nor the other's name reached the disk
        entry = next(one for one in short_entries(path).values() if content(path, one)[0] == ord("x"))
        cluster = struct.unpack_from("<H", entry, 26)[0]
        disk.seek(fat.RESERVED * 512 + 4 * (cluster + 3))
        disk.write(bytes(400))
    mtools(path, "mcopy", "-", "::EFI/Linux/os-3+3.efi")
    assert fsck(path) != ""
    assert len(mended(path)) == 3
    assert fsck(path) == ""
    assert names(path, "EFI/Linux") == {"::/EFI/Linux/os-1+4-1.efi", "::/EFI/Linux/os-2+3.efi"}


def test_room_without_a_name_is_free_again_once_writing_was_interrupted(tmp_path):
    path = partition(tmp_path)
    mtools(path, "mcopy", "-", "::EFI/Linux/lost.efi", data=b"z" * 300_000)
    with path.open("r+b") as disk:
        at = next(a for a, e in short_entries(path).items() if content(path, e)[0] == ord("z"))
        disk.seek(at)
        disk.write(b"\xe5")
        disk.seek(0x41)
        disk.write(b"\x01")
    assert "Reclaimed 586 unused clusters" in fsck(path)
    assert mended(path) == []
    assert fsck(path) == ""


def test_a_file_that_is_damaged_otherwise_is_not_judged(tmp_path):
    path = partition(tmp_path)
    another_name(path, "EFI/Linux/kbuild.part", b"two")
    with path.open("r+b") as disk:
        entry = next(e for e in short_entries(path).values() if content(path, e).startswith(b"one"))
        disk.seek(fat.RESERVED * 512 + 4 * (struct.unpack_from("<H", entry, 26)[0] + 3))
        disk.write(bytes(4))
    table = slice(fat.RESERVED * 512 + 8, fat.RESERVED * 512 + 300_000)
    before = path.read_bytes()[table]
    assert len(mended(path)) == 1
    assert path.read_bytes()[table] == before, "nothing is freed where it is not known what belongs to whom"


@pytest.mark.parametrize("data", [b"", bytes(4096), b"ext4" * 1000])
def test_what_is_no_fat32_is_left_alone(data):
    disk = io.BytesIO(data)
    assert mending.mend(disk) == []
    assert disk.getvalue() == data
