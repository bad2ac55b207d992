"""Downloads that all workspaces of a person share: taken only when they are what their name says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.sources import shared
from kairosbuild.sources.shared import Downloads, find
from kairosbuild.store.cas import Cas

DATA = b"a package" * 1000
BLOB = of_bytes(DATA)


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "downloads")


def cas(tmp_path: Path, name: str) -> Cas:
    return Cas(tmp_path / name)


def test_what_one_workspace_fetched_another_takes(tmp_path: Path, downloads: Downloads) -> None:
    one, other = cas(tmp_path, "one"), cas(tmp_path, "other")
    one.put_bytes(DATA)
    assert downloads.take([BLOB], other) == set()
    downloads.keep([BLOB.digest], one)
    assert downloads.take([BLOB, of_bytes(b"nobody has this")], other) == {BLOB.digest}
    assert other.read(BLOB) == DATA and other.has(BLOB)
    assert (downloads.folder.stat().st_mode & 0o777) == 0o700


def test_many_at_once(tmp_path: Path, downloads: Downloads) -> None:
    one, other = cas(tmp_path, "one"), cas(tmp_path, "other")
    blobs = [one.put_bytes(b"%d" % number * 999) for number in range(50)]
    downloads.keep([blob.digest for blob in blobs], one)
    assert downloads.take(blobs, other) == {blob.digest for blob in blobs}
    assert not other.missing(blobs)


@pytest.mark.parametrize("bad", [b"damaged", DATA[:-1], DATA + b"x", b""])
def test_a_damaged_one_is_removed_and_not_taken(tmp_path: Path, downloads: Downloads, bad: bytes) -> None:
    store = cas(tmp_path, "one")
    downloads.folder.mkdir()
    place = downloads.folder / BLOB.hex
    place.write_bytes(bad)
    assert downloads.take([BLOB], store) == set()
    assert not place.exists() and not store.has(BLOB)
    assert not store.has(of_bytes(bad))


def test_a_wrong_size_in_a_lock_is_not_the_fault_of_the_file(tmp_path: Path, downloads: Downloads) -> None:
    store = cas(tmp_path, "one")
    store.put_bytes(DATA)
    downloads.keep([BLOB.digest], store)
    other = cas(tmp_path, "other")
    assert downloads.take([Blob(BLOB.digest, 1)], other) == set()
    assert (downloads.folder / BLOB.hex).exists()


def test_a_change_of_one_copy_never_reaches_a_store_unseen(tmp_path: Path, downloads: Downloads) -> None:
    one, other = cas(tmp_path, "one"), cas(tmp_path, "other")
    one.put_bytes(DATA)
    downloads.keep([BLOB.digest], one)
    place = downloads.folder / BLOB.hex
    place.chmod(0o644)
    place.write_bytes(b"evil")
    assert downloads.take([BLOB], other) == set()
    assert one.read(BLOB) == DATA, "nor one that it came from"


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    store = cas(tmp_path, "one")
    store.put_bytes(DATA)
    (tmp_path / "file").write_text("")
    Downloads(tmp_path / "file" / "below").keep([BLOB.digest], store)


def test_what_nobody_took_for_long_is_swept_once_a_day(tmp_path: Path, downloads: Downloads) -> None:
    store = cas(tmp_path, "one")
    store.put_bytes(DATA)
    old, now = store.put_bytes(b"old"), time.time()
    downloads.keep([old.digest], store)
    (downloads.folder / ".left-behind").write_text("")
    used = store.put_bytes(b"used")
    downloads.keep([used.digest], store)
    for name in (old.hex, used.hex, ".left-behind", "swept"):
        os.utime(downloads.folder / name, (now - shared.UNUSED - 10,) * 2)
    assert downloads.take([used], cas(tmp_path, "other")) == {used.digest}
    downloads.keep([BLOB.digest], store)
    assert {file.name for file in downloads.folder.iterdir()} == {BLOB.hex, used.hex, "swept"}
    os.utime(downloads.folder / used.hex, (now - shared.UNUSED - 10,) * 2)
    downloads.keep([old.digest], store)
    assert (downloads.folder / used.hex).exists(), "once a day is enough"


def test_which_folder(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert find(home) == Downloads(tmp_path / ".cache/kairosbuild/downloads")
    assert find({**home, "XDG_CACHE_HOME": "/c"}) == Downloads(Path("/c/kairosbuild/downloads"))
    assert find(home, "/set") == Downloads(Path("/set"))
    assert find({**home, "KBUILD_DOWNLOADS": "/said"}, "/set") == Downloads(Path("/said"))
    assert find({**home, "KBUILD_DOWNLOADS": ""}, "/set") is None and find(home, "") is None
