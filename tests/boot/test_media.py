"""The command line inside UKIs, disks and ISOs, ours and those that the formats' own programs wrote."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from boot_samples import disk, kernel_image, stub
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer

from kairosbuild.boot import media, qcow2, vmdk

MIB = 1 << 20
WORDS = "kbuild.layers=ab:1 quiet"


NEWEST = {
    "EFI/BOOT/BOOTX64.EFI": stub(),  # systemd-boot has no command line
    "EFI/Linux/os-1+3.efi": kernel_image("old"),
    "EFI/Linux/os-2+3.efi": kernel_image(WORDS),
    "EFI/Linux/recovery.efi": kernel_image("kbuild.recovery quiet"),
    "EFI/Linux/notes.txt": b"no kernel",
}


def of_file(file: Path) -> tuple[str | None, int]:
    """What is found, and how often it was read."""
    reads = []
    with file.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            reads.append(offset)
            return os.pread(stream.fileno(), length, offset)

        return media.cmdline(read), len(reads)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("form", ["raw", "qcow2", "vmdk"])
def test_the_newest_entry_of_a_disk_counts_and_a_few_reads_find_it(
    tmp_path: Path, form: str, sector: int
) -> None:
    file = tmp_path / "disk"
    if form == "raw":
        disk(NEWEST, sector).write_raw(file)
    else:
        with file.open("wb") as out:
            if form == "qcow2":
                qcow2.write(disk(NEWEST, sector), out.write)
            else:
                vmdk.write(disk(NEWEST, sector), out.write, 1)
    found, reads = of_file(file)
    assert found == WORDS
    assert reads <= 8


def test_other_programs_disks(tmp_path: Path) -> None:
    """A table by sfdisk, a filesystem by mkfs.vfat with files by mcopy, converted by qemu-img."""
    raw, esp = tmp_path / "disk.raw", tmp_path / "esp"
    for file, size in ((raw, 100 * MIB), (esp, 90 * MIB)):
        with file.open("wb") as out:
            out.truncate(size)
    table = f"label: gpt\nstart=2048, size={90 * 2048}, type=uefi\n"
    subprocess.run([peer("sfdisk", "fdisk"), raw], input=table, text=True, check=True, capture_output=True)
    subprocess.run(
        [peer("mkfs.vfat", "dosfstools"), "-F", "32", "-s", "1", esp], check=True, capture_output=True
    )
    for folder in ("::EFI", "::EFI/Linux"):
        subprocess.run([peer("mmd", "mtools"), "-i", esp, folder], check=True)
    (tmp_path / "uki").write_bytes(kernel_image(WORDS))
    target = "::EFI/Linux/A system with a long name.efi"
    subprocess.run([peer("mcopy", "mtools"), "-i", esp, tmp_path / "uki", target], check=True)
    with raw.open("r+b") as out:
        out.seek(MIB)
        out.write(esp.read_bytes())
    assert of_file(raw)[0] == WORDS
    for form in ("qcow2", "vmdk"):
        made = tmp_path / form
        subprocess.run([peer("qemu-img", "qemu-utils"), "convert", "-O", form, raw, made], check=True)
        assert of_file(made)[0] == WORDS
    packed = tmp_path / "packed"
    subprocess.run([peer("qemu-img", "qemu-utils"), "convert", "-c", "-O", "qcow2", raw, packed], check=True)
    assert of_file(packed)[0] is None, "compressed clusters are not read"


def test_what_firmware_starts_by_itself_and_what_starts_nothing(tmp_path: Path) -> None:
    cases = {
        "live": ({"EFI/BOOT/BOOTX64.EFI": kernel_image(WORDS)}, WORDS),
        "loader": ({"EFI/BOOT/BOOTX64.EFI": stub()}, None),
        "recovery": ({"EFI/Linux/recovery.efi": NEWEST["EFI/Linux/recovery.efi"]}, None),
    }
    for name, (files, expected) in cases.items():
        disk(files).write_raw(tmp_path / name)
        assert of_file(tmp_path / name)[0] == expected
    for name, data in (("uki", kernel_image(WORDS)), ("text", b"x" * 5000), ("empty", b""), ("pe", stub())):
        (tmp_path / name).write_bytes(data)
        assert of_file(tmp_path / name)[0] == (WORDS if name == "uki" else None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3 * MIB), st.binary(min_size=1, max_size=64)), max_size=8), st.data()
)
def test_a_damaged_disk_has_a_command_line_or_none(
    damage: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """Whoever made it: no loop without end, no error but the reader's own."""
    where = data.draw(st.sampled_from(SAMPLES))
    found = bytearray(where)
    for at, what in damage:
        found[at : at + len(what)] = what
    whole = bytes(found)
    said = media.cmdline(lambda offset, length: whole[offset : offset + length])
    assert said is None or isinstance(said, str)


def _front(form: str) -> bytes:
    """The first MiB of a disk, where its tables are."""
    made = disk(NEWEST)
    if form == "raw":
        return b"".join(map(bytes, made.read(0, 5 * MIB)))
    held = bytearray()
    qcow2.write(made, lambda piece: held.extend(piece))
    return bytes(held[: 5 * MIB])


SAMPLES = [_front("raw"), _front("qcow2"), kernel_image(WORDS)]
