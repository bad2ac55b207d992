"""What every content-addressed storage promises. An implementation runs it by subclassing `CasContract`."""

import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import KbuildError

SIZES = [0, 1, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000]


class CasContract:
    """`cas` is an empty storage; a subclass gives it as a fixture."""

    @pytest.fixture
    def cas(self) -> Any:
        raise NotImplementedError

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("how", ["bytes", "file", "copy", "writer"])
    def test_what_is_put_is_read(self, cas: Any, tmp_path: Path, how: str, size: int) -> None:
        data = random.Random(size).randbytes(size)
        blob = put(cas, data, how, tmp_path)
        assert blob == of_bytes(data)
        assert cas.has(blob)
        assert cas.read(blob) == data
        assert cas.path(blob.digest).read_bytes() == data
        assert cas.verify(blob)

    @pytest.mark.parametrize("how", ["bytes", "file", "copy", "writer"])
    def test_putting_twice_keeps_one(self, cas: Any, tmp_path: Path, how: str) -> None:
        first = put(cas, b"same", "bytes", tmp_path)
        inode = cas.path(first.digest).stat().st_ino
        assert put(cas, b"same", how, tmp_path) == first
        assert cas.path(first.digest).stat().st_ino == inode

    def test_blobs_are_read_only(self, cas: Any, tmp_path: Path) -> None:
        old = os.umask(0o077)
        try:
            blobs = [put(cas, how.encode(), how, tmp_path) for how in ("bytes", "file", "copy", "writer")]
        finally:
            os.umask(old)
        assert {cas.path(blob.digest).stat().st_mode & 0o7777 for blob in blobs} == {0o444}

    def test_absent_blob(self, cas: Any) -> None:
        blob = of_bytes(b"never put")
        assert not cas.has(blob)
        assert not cas.verify(blob)
        assert cas.missing([blob]) == {blob}
        with pytest.raises(KbuildError) as caught:
            cas.read(blob)
        assert caught.value.reason == "blob-missing"

    def test_another_size_is_another_blob(self, cas: Any) -> None:
        blob = cas.put_bytes(b"four")
        assert not cas.has(Blob(blob.digest, 5))
        assert not cas.verify(Blob(blob.digest, 5))

    def test_missing_tells_apart(self, cas: Any) -> None:
        here = [cas.put_bytes(bytes([n])) for n in range(20)]
        gone = [of_bytes(bytes([n, n])) for n in range(20)]
        assert cas.missing(here + gone) == set(gone)

    def test_put_file_takes_the_file_and_add_copy_leaves_it(self, cas: Any, tmp_path: Path) -> None:
        moved, copied = tmp_path / "moved", tmp_path / "copied"
        moved.write_bytes(b"m")
        copied.write_bytes(b"c")
        cas.put_file(moved)
        cas.add_copy(copied)
        assert not moved.exists()
        assert copied.read_bytes() == b"c"

    def test_nothing_is_kept_without_commit(self, cas: Any) -> None:
        with cas.writer() as out:
            out.write(b"half of it")
        with pytest.raises(RuntimeError), cas.writer() as out:
            out.write(b"more")
            raise RuntimeError
        assert not cas.has(of_bytes(b"half of it"))
        assert not cas.has(of_bytes(b"more"))

    def test_truncated_blob_is_absent_and_can_be_put_again(self, cas: Any) -> None:
        blob = cas.put_bytes(b"x" * 1000)
        damage(cas, blob, b"x" * 999)
        assert not cas.has(blob)
        assert cas.put_bytes(b"x" * 1000) == blob
        assert cas.read(blob) == b"x" * 1000

    def test_flipped_bit_is_noticed_by_asking(self, cas: Any) -> None:
        blob = cas.put_bytes(b"x" * 1000)
        damage(cas, blob, b"x" * 999 + b"y")
        assert not cas.has(blob)
        assert cas.put_bytes(b"x" * 1000) == blob
        assert cas.read(blob) == b"x" * 1000

    def test_flipped_bit_behind_the_file_system_is_noticed_by_reading(self, cas: Any) -> None:
        blob = cas.put_bytes(b"x" * 1000)
        damage(cas, blob, b"x" * 999 + b"y", unseen=True)
        assert not cas.verify(blob)
        with pytest.raises(KbuildError) as caught:
            cas.read(blob)
        assert caught.value.reason == "blob-damaged"
        assert not cas.has(blob)
        cas.put_bytes(b"x" * 1000)
        assert cas.verify(blob)

    def test_many_threads_put_the_same(self, cas: Any) -> None:
        data = [os.urandom(3000) for _ in range(50)]
        results: list[list[Blob]] = []
        threads = [
            threading.Thread(target=lambda: results.append([cas.put_bytes(one) for one in data]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(result == [of_bytes(one) for one in data] for result in results)
        assert all(cas.verify(of_bytes(one)) for one in data)


def put(cas: Any, data: bytes, how: str, tmp_path: Path) -> Blob:
    """Store bytes in one of the four ways."""
    if how == "bytes":
        return cas.put_bytes(data)
    if how == "writer":
        with cas.writer() as out:
            for start in range(0, len(data), 700_000):
                out.write(data[start : start + 700_000])
            return out.commit()
    path = tmp_path / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return cas.put_file(path) if how == "file" else cas.add_copy(path)


def damage(cas: Any, blob: Blob, data: bytes, *, unseen: bool = False) -> None:
    """Overwrite a stored blob in place; `unseen` as a failing disk would, without a trace in its times."""
    path = cas.path(blob.digest)
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(status.st_mode & 0o777)
    if unseen:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
