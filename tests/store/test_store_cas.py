"""The storage on plain files, beyond the contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cas_contract import damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kairosbuild.core.digest import of_bytes, of_file
from kairosbuild.core.errors import InputError
from kairosbuild.store.cas import SEAL
from kairosbuild.store.store import Store

LARGE = 1 << 28


def test_a_sparse_disk_stays_sparse(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as out:
        out.write(b"head")
        out.seek(LARGE // 2)
        out.write(b"middle")
        out.truncate(LARGE)
    copied = store.cas.add_copy(disk)
    assert copied == of_file(disk)
    assert store.cas.path(copied.digest).stat().st_blocks * 512 < 1 << 20
    assert store.cas.verify(copied)
    disk.chmod(0o600)
    with disk.open("r+b") as out:
        out.write(b"tail")
    moved = store.cas.put_file(disk)
    assert moved.size == LARGE
    assert store.cas.path(moved.digest).stat().st_blocks * 512 < 1 << 20


holes_and_data = st.lists(st.tuples(st.booleans(), st.integers(1, 200_000)), max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=holes_and_data)
def test_any_pattern_of_holes_is_copied_exactly(
    store: Store, tmp_path: Path, pieces: list[tuple[bool, int]]
) -> None:
    path = tmp_path / "holey"
    expected = b""
    with path.open("wb") as out:
        for number, (hole, size) in enumerate(pieces):
            data = bytes(size) if hole else bytes([number + 1]) * size
            expected += data
            out.seek(size, os.SEEK_CUR) if hole else out.write(data)
        out.truncate(len(expected))
    assert store.cas.add_copy(path) == of_bytes(expected)
    assert store.cas.put_file(path) == of_bytes(expected)
    assert store.cas.read(of_bytes(expected)) == expected


def test_put_file_moves(store: Store) -> None:
    path = store.cas.tmp() / "output"
    path.write_bytes(b"big")
    inode = path.stat().st_ino
    blob = store.cas.put_file(path)
    assert store.cas.path(blob.digest).stat().st_ino == inode


def test_a_hard_linked_file_is_copied_because_its_other_name_could_change_it(
    store: Store, tmp_path: Path
) -> None:
    path, other = store.cas.tmp() / "output", tmp_path / "other"
    path.write_bytes(b"shared")
    other.hardlink_to(path)
    blob = store.cas.put_file(path)
    other.write_bytes(b"SHARED")
    assert not path.exists()
    assert store.cas.read(blob) == b"shared"
    assert store.cas.path(blob.digest).stat().st_nlink == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_of_another_owner_is_copied(store: Store) -> None:
    path = store.cas.tmp() / "output"
    path.write_bytes(b"theirs")
    os.chown(path, 12345, 12345)
    blob = store.cas.put_file(path)
    assert not path.exists()
    assert store.cas.path(blob.digest).stat().st_uid == os.geteuid()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
@pytest.mark.parametrize("how", ["put_file", "add_copy"])
def test_only_regular_files_are_taken(store: Store, tmp_path: Path, make, how: str) -> None:
    make(tmp_path / "odd")
    with pytest.raises(InputError) as caught:
        getattr(store.cas, how)(tmp_path / "odd")
    assert caught.value.reason == "not-a-file"


def test_a_blob_from_a_copied_store_is_hashed_once_and_then_believed(store: Store) -> None:
    blob = store.cas.put_bytes(b"restored by a tool that keeps no times")
    path = store.cas.path(blob.digest)
    os.utime(path)
    assert store.cas.has(blob)
    assert path.stat().st_mtime_ns == SEAL


def test_damaged_blob_is_set_aside_to_look_at(store: Store) -> None:
    blob = store.cas.put_bytes(b"right")
    damage(store.cas, blob, b"wrong")
    assert not store.cas.has(blob)
    assert (store.root / "damaged" / blob.hex).read_bytes() == b"wrong"


def test_a_link_in_place_of_a_blob_is_not_followed(store: Store, tmp_path: Path) -> None:
    blob = store.cas.put_bytes(b"blob")
    path = store.cas.path(blob.digest)
    path.unlink()
    (tmp_path / "elsewhere").write_bytes(b"blob")
    path.symlink_to(tmp_path / "elsewhere")
    assert not store.cas.has(blob)
    assert not store.cas.verify(blob)


def test_no_temporary_file_is_left(store: Store) -> None:
    for number in range(20):
        store.cas.put_bytes(bytes([number % 5]))
    with store.cas.writer() as out:
        out.write(b"dropped")
    assert list((store.root / "tmp").iterdir()) == []


def test_opening_a_store_loads_nothing_heavy() -> None:
    """A build in which nothing changed must not pay for diskcache, asyncio and the like."""
    code = """if True:
        import sys, pathlib, tempfile
        from kairosbuild.store.store import Store
        store = Store(pathlib.Path(tempfile.mkdtemp()) / "cache")
        store.sources, store.actions.get("sha256:" + "0" * 64)
        print(*sorted({"diskcache", "asyncio", "concurrent.futures", "shutil"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("", "shutil")  # tempfile loads shutil


def test_the_folder_is_tagged_as_a_cache(store: Store) -> None:
    assert (
        (store.home / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    )
