"""FAT, ext4, GPT and qcow2 as they are computed, read by the programs that own those formats."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer

from kairosbuild.boot import ext4, fat, gpt, qcow2
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.errors import KbuildError

MIB = 1 << 20
IDENTITY = uuid.UUID(int=0x1234)


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _fat(path: Path, files: Mapping[str, bytes], size: int = 40 * MIB) -> Path:
    disk = Sparse(size)
    disk.add_all(0, fat.build(fat.Volume(size, "ESP", 0xCAFE, 86400 * 4000), files))
    disk.write_raw(path)
    return path


def test_fat_reads_back_with_mtools_and_is_clean(tmp_path):
    files = {
        "EFI/BOOT/BOOTX64.EFI": b"loader" * 1000,
        "EFI/Linux/a system with a long name+3.efi": b"kernel" * 300_000,
        "loader/loader.conf": b"timeout 0\n",
        "loader/entries/exactly13char": b"",
        "x": b"1",
    }
    image = _fat(tmp_path / "esp", files)
    _run(peer("fsck.vfat", "dosfstools"), "-n", image)
    mtype = peer("mtype", "mtools")
    for path, content in files.items():
        got = subprocess.run([mtype, "-i", image, f"::{path}"], capture_output=True, check=True).stdout
        assert got == content


def test_fat_with_a_hundred_files_in_a_folder(tmp_path):
    files = {f"many/file number {number}.text": bytes([number]) * number for number in range(100)}
    image = _fat(tmp_path / "esp", files)
    _run(peer("fsck.vfat", "dosfstools"), "-n", image)
    listing = _run(peer("mdir", "mtools"), "-i", image, "-b", "::many")
    assert {line.rpartition("/")[2] for line in listing.split("\n") if line} == {
        p.rpartition("/")[2] for p in files
    }


@pytest.mark.parametrize("size", [34 * MIB, 64 * MIB, 128 * MIB, 512 * MIB, 4096 * MIB])
def test_fat_of_any_size_is_fat32(tmp_path, size):
    image = _fat(tmp_path / "esp", {"a": b"1"}, size)
    assert "32 bit entries" in _run(peer("fsck.vfat", "dosfstools"), "-n", "-v", image)


def test_fat_refuses_what_does_not_fit():
    with pytest.raises(KbuildError) as caught:
        list(fat.build(fat.Volume(34 * MIB, "ESP", 1), {"big": bytes(40 * MIB)}))
    assert caught.value.reason == "fat-size"
    with pytest.raises(KbuildError):
        list(fat.build(fat.Volume(8 * MIB, "ESP", 1), {}))


def _ext4(path: Path, size: int, files: Mapping[str, bytes]) -> Path:
    found = ext4.layout(
        ext4.Volume(size, "kbuild-layers", IDENTITY, 86400), {n: len(c) for n, c in files.items()}
    )
    disk = Sparse(size)
    disk.add_all(0, found.metadata)
    for name, runs in found.files.items():
        at = 0
        for offset, length in runs:
            disk.add(offset, files[name][at : at + length])
            at += length
    disk.write_raw(path)
    return path


@pytest.mark.parametrize(
    ("size", "files"),
    [
        (16 * MIB, {}),
        (64 * MIB, {"a": b"12345", "b" * 64: bytes(range(256)) * 161}),
        (12_345 * 4096, {f"{n:064x}": bytes([n]) * 4096 * n for n in range(100)}),
        (128 * MIB + 40 * 4096, {"x": b"y"}),
        (300 * MIB, {"over two backups": b"z" * (280 * MIB), "after": b"!"}),
        (20 << 30, {"x": b"y"}),
    ],
)
def test_ext4_is_clean_and_reads_back(tmp_path, size, files):
    image = _ext4(tmp_path / "fs", size, files)
    _run(peer("e2fsck", "e2fsprogs"), "-fn", image)
    for name, content in files.items():
        _run(peer("debugfs", "e2fsprogs"), "-R", f'dump "{name}" {tmp_path}/out', image)
        assert (tmp_path / "out").read_bytes() == content


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * MIB), max_size=12), spare=st.integers(0, 40 * MIB))
def test_ext4_holds_what_need_says(tmp_path_factory, sizes, spare):
    files = {f"f{number}": bytes([number]) * size for number, size in enumerate(sizes)}
    size = ext4.need(sizes) + spare
    image = _ext4(tmp_path_factory.mktemp("e") / "fs", size - size % 4096, files)
    _run(peer("e2fsck", "e2fsprogs"), "-fn", image)


def test_ext4_refuses_what_does_not_fit():
    with pytest.raises(KbuildError) as caught:
        ext4.layout(ext4.Volume(32 * MIB, "x", IDENTITY), {"big": 64 * MIB})
    assert caught.value.reason == "disk-size"


def test_a_large_file_gets_a_leaf_of_extents(tmp_path):
    """More than four extents of 128 MiB; the content is a hole, so it costs nothing."""
    size = 2 << 30
    found = ext4.layout(ext4.Volume(size, "x", IDENTITY), {"big": 1500 * MIB})
    disk = Sparse(size)
    disk.add_all(0, found.metadata)
    disk.write_raw(tmp_path / "fs")
    _run(peer("e2fsck", "e2fsprogs"), "-fn", tmp_path / "fs")
    assert sum(length for _, length in found.files["big"]) == 1500 * MIB


def _disk(content: bytes) -> Sparse:
    disk = Sparse(64 * MIB)
    esp = gpt.Partition(gpt.ESP, uuid.UUID(int=1), "esp", MIB, 40 * MIB)
    layers = gpt.Partition(gpt.LAYERS, uuid.UUID(int=2), "kbuild-layers", 41 * MIB, 22 * MIB)
    disk.add_all(0, gpt.build(disk.size, IDENTITY, (esp, layers)))
    disk.add(esp.start + 5, content)
    return disk


def test_gpt_is_what_sfdisk_reads(tmp_path):
    _disk(b"x").write_raw(tmp_path / "disk")
    dump = _run(peer("sfdisk", "fdisk"), "-d", tmp_path / "disk")
    assert "label: gpt" in dump
    assert "start=        2048, size=       81920" in dump
    assert 'name="kbuild-layers"' in dump
    verified = _run(peer("sfdisk", "fdisk"), "--verify", tmp_path / "disk")
    assert "No errors detected" in verified


def test_qcow2_is_the_raw_disk(tmp_path):
    disk = _disk(b"some bytes" * 100_000)
    disk.write_raw(tmp_path / "raw")
    with (tmp_path / "qcow2").open("wb") as out:
        qcow2.write(disk, out.write)
    image = peer("qemu-img", "qemu-utils")
    _run(image, "check", "-f", "qcow2", tmp_path / "qcow2")
    _run(image, "compare", "-f", "raw", "-F", "qcow2", tmp_path / "raw", tmp_path / "qcow2")
    assert (tmp_path / "qcow2").stat().st_size < 3 * MIB


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=9000)), max_size=8))
def test_sparse_reads_as_it_writes(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("s")
    disk, oracle = Sparse(5 * MIB), bytearray(5 * MIB)
    for number, (place, content) in enumerate(dict(pieces).items()):
        offset = place * 10_000
        oracle[offset : offset + len(content)] = content
        if number % 2:
            (folder / str(number)).write_bytes(b"head" + content + b"tail")
            disk.add(offset, Part(folder / str(number), 4, len(content)))
        else:
            disk.add(offset, content)
    assert b"".join(map(bytes, disk.read(0, disk.size))) == oracle
    assert b"".join(map(bytes, disk.read(12_345, 3_000_000))) == oracle[12_345:3_000_000]
    disk.write_raw(folder / "raw")
    assert (folder / "raw").read_bytes() == oracle
    empty = set(range(5 * MIB // 65536)) - set(disk.used(65536))
    assert all(not any(oracle[n * 65536 : (n + 1) * 65536]) for n in empty)


def test_nothing_goes_beyond_the_end():
    with pytest.raises(ValueError, match="do not fit"):
        Sparse(100).add(99, b"ab")


def test_parts_of_files_come_out_wherever_they_lie(tmp_path):
    """Whole blocks, which a file system may share, and others, which none can."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 64 + b"a last block that is not whole")
    size = source.stat().st_size
    disk = Sparse(MIB)
    placed = {0: Part(source, 0, 8192), 12288: Part(source, 4096, size - 4096), 40960: Part(source, 7, 4096),
              65537: Part(source, 0, 4096), 81920: Part(source, 8192, size - 8192)}  # fmt: skip
    for at, part in placed.items():
        disk.add(at, part)
    disk.write_raw(tmp_path / "disk")
    made, given = (tmp_path / "disk").read_bytes(), source.read_bytes()
    assert made == b"".join(map(bytes, disk.read(0, MIB)))
    for at, part in placed.items():
        assert made[at : at + part.size] == given[part.offset : part.offset + part.size]
