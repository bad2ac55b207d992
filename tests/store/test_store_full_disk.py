"""A full disk is an error with a name, and leaves nothing partial."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_records import a_record

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.store.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A store on a file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    store = Store(place / "cache")
    yield store
    store.close()
    subprocess.run(["umount", "-l", str(place)], check=True)


BIG = bytes(range(256)) * 4 * 3000  # 3 MB without a run of zeros


def in_bytes(store: Store, big: Path) -> None:
    store.cas.put_bytes(BIG)


def in_pieces(store: Store, big: Path) -> None:
    with store.cas.writer() as out:
        for start in range(0, len(BIG), 100_000):
            out.write(BIG[start : start + 100_000])
        out.commit()


def by_copy(store: Store, big: Path) -> None:
    store.cas.add_copy(big)


def from_another_file_system(store: Store, big: Path) -> None:
    store.cas.put_file(big)


def as_a_tree(store: Store, big: Path) -> None:
    store.trees.get("tree", lambda root: (root / "file").write_bytes(BIG) and None)


@pytest.mark.parametrize("how", [in_bytes, in_pieces, by_copy, from_another_file_system, as_a_tree])
def test_a_blob_that_does_not_fit(small: Store, tmp_path: Path, how) -> None:
    big = tmp_path / "big"
    big.write_bytes(BIG)
    before = small.cas.put_bytes(b"was here before")
    with pytest.raises(HostError) as caught:
        how(small, big)
    assert caught.value.reason == "disk-full"
    assert big.read_bytes() == BIG
    assert not small.cas.has(of_bytes(BIG))
    assert list((small.root / "tmp").iterdir()) == []
    assert small.cas.read(before) == b"was here before"
    after = small.cas.put_bytes(b"there is room again")
    assert small.cas.verify(after)


def test_a_record_that_does_not_fit(small: Store) -> None:
    kept = a_record("kept", {"file": small.cas.put_bytes(b"x")})
    small.actions.put(kept)
    filler = small.root / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(4 << 20))
    with pytest.raises(HostError) as caught:
        for number in range(2000):
            small.actions.put(a_record(f"more {number}" * 50, {}))
    assert caught.value.reason == "disk-full"
    assert small.actions.get(kept.key) == kept
    filler.unlink()
    later = a_record("later", {"file": small.cas.put_bytes(b"x")})
    small.actions.put(later)
    assert small.actions.get_many([kept.key, later.key]) == {kept.key: kept, later.key: later}
