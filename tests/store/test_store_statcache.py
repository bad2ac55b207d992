"""The stat cache tells changed files from unchanged ones without reading the latter."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kairosbuild.core.digest import of_bytes, of_file
from kairosbuild.core.errors import InputError
from kairosbuild.store.statcache import StatCache

TICK = 0.03  # seconds: longer than what the cache takes for young


def settle() -> None:
    time.sleep(TICK)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were hashed."""
    paths: list[str] = []
    real = StatCache._hash
    monkeypatch.setattr(StatCache, "_hash", lambda self, path: (paths.append(path), real(self, path))[1])
    return paths


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    file, home = tmp_path / "file", tmp_path / "cache"
    file.write_bytes(b"content")
    settle()
    cache = StatCache(home)
    assert cache.digest(str(file)) == cache.digest(str(file)) == of_bytes(b"content")
    cache.save()
    assert StatCache(home).digest(str(file)) == of_bytes(b"content")
    assert len(reads) == 1


def test_a_young_file_is_read_each_time(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "file"
    cache = StatCache(tmp_path / "cache")
    file.write_bytes(b"1")
    assert cache.digest(str(file)) == of_bytes(b"1")
    file.write_bytes(b"2")  # the same size, and within the same tick the same times
    assert cache.digest(str(file)) == of_bytes(b"2")
    cache.save()
    assert StatCache(tmp_path / "cache").digest(str(file)) == of_bytes(b"2")
    assert len(reads) == 3


def change_content(file: Path) -> None:
    file.write_bytes(b"CONTENT")


def change_and_put_mtime_back(file: Path) -> None:
    status = file.stat()
    file.write_bytes(b"CONTENT")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_and_put_mtime_back(file: Path) -> None:
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"CONTENT")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)


def grow(file: Path) -> None:
    with file.open("ab") as out:
        out.write(b"!")


@pytest.mark.parametrize(
    "change", [change_content, change_and_put_mtime_back, replace_and_put_mtime_back, grow]
)
def test_every_change_shows(tmp_path: Path, change) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    settle()
    cache = StatCache(tmp_path / "cache")
    cache.digest(str(file))
    cache.save()
    settle()
    change(file)
    assert StatCache(tmp_path / "cache").digest(str(file)) == of_file(file)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=3)), max_size=15))
def test_never_wrong_however_fast_files_change(tmp_path: Path, writes: list[tuple[int, bytes]]) -> None:
    cache = StatCache(tmp_path / "cache")
    for number, data in writes:
        file = tmp_path / str(number)
        file.write_bytes(data)
        assert cache.digest(str(file)) == of_bytes(data)
        if number == 0:
            cache.save()


def test_odd_names_survive(tmp_path: Path) -> None:
    names = [b"plain", "ü".encode(), b"\xff\xfe", b"new\nline"]
    files = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    for file in files:
        Path(file).write_bytes(os.fsencode(file))
    settle()
    cache = StatCache(tmp_path / "cache")
    expected = [cache.digest(file) for file in files]
    cache.save()
    again = StatCache(tmp_path / "cache")
    assert [again.known(file, os.lstat(file)) for file in files] == expected


@pytest.mark.parametrize(
    "spoil", [lambda d: b"", lambda d: d[:-1], lambda d: d[:-1] + b"?", lambda d: b"x" + d]
)
def test_a_spoilt_cache_is_an_empty_one(tmp_path: Path, spoil, reads: list[str]) -> None:
    file, home = tmp_path / "file", tmp_path / "cache"
    file.write_bytes(b"content")
    settle()
    cache = StatCache(home)
    cache.digest(str(file))
    cache.save()
    home.write_bytes(spoil(home.read_bytes()))
    assert StatCache(home).digest(str(file)) == of_bytes(b"content")
    assert len(reads) == 2


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    for file in files[:2]:
        file.write_bytes(b"x")
    settle()
    cache = StatCache(tmp_path / "cache")
    for file in files[:2]:
        cache.digest(str(file))
    cache.save()
    files[0].unlink()
    files[2].write_bytes(b"y")
    settle()
    cache.digest(str(files[2]))
    cache.save()
    assert set(StatCache(tmp_path / "cache")._rows) == {str(files[1]), str(files[2])}


def test_only_regular_files_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    cache = StatCache(tmp_path / "cache")
    for path in (tmp_path, tmp_path / "link"):
        with pytest.raises(InputError) as caught:
            cache.digest(str(path))
        assert caught.value.reason == "not-a-file"
    with pytest.raises(FileNotFoundError):
        cache.digest(str(tmp_path / "none"))
