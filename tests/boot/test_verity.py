"""The hash tree against the format's own tool, and against damage."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import peer

from kairosbuild.boot.verity import BLOCK, Verity, append, check
from kairosbuild.core.errors import KbuildError

SIZES = [1, BLOCK, BLOCK + 1, 128 * BLOCK, 128 * BLOCK + 1, 129 * BLOCK, 128 * 128 * BLOCK + 5]


def _file(tmp_path: Path, size: int) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(number * 7 % 251 for number in range(min(size, 70_000))).ljust(size, b"x"))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_veritysetup_accepts_the_tree(tmp_path, size):
    path = _file(tmp_path, size)
    sealed = append(path, uuid.UUID(int=7))
    command = [
        peer("veritysetup", "cryptsetup-bin"),
        "verify",
        f"--hash-offset={sealed.hash_offset}",
        path,
        path,
    ]
    done = subprocess.run([*command, sealed.root_hash], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = subprocess.run([*command, "0" * 64], capture_output=True, text=True, check=False)
    assert other.returncode != 0


@pytest.mark.parametrize("size", SIZES[:5])
def test_any_flipped_byte_is_noticed(tmp_path, size):
    path = _file(tmp_path, size)
    sealed = append(path, uuid.UUID(int=7))
    check(path, sealed)
    whole = path.read_bytes()
    tree = range(sealed.hash_offset + BLOCK, len(whole))
    for at in {0, size - 1, sealed.hash_offset - 1, *tree[:1], *tree[-1:]}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(KbuildError) as caught:
            check(path, sealed)
        assert caught.value.reason == "verity-mismatch"


def test_a_file_cut_short_is_noticed(tmp_path):
    path = _file(tmp_path, 5 * BLOCK)
    sealed = append(path, uuid.UUID(int=7))
    path.write_bytes(path.read_bytes()[: 2 * BLOCK])
    with pytest.raises(KbuildError) as caught:
        check(path, sealed)
    assert caught.value.reason == "verity-mismatch"


def test_golden_root_hash(tmp_path):
    sealed = append(_file(tmp_path, 200 * BLOCK), uuid.UUID(int=7))
    assert sealed == Verity("b5d154d47e98a04b5b972a7c6ae042bcfd917388dbb560e804fc797b32bebb55", 200 * BLOCK)


@settings(max_examples=20, deadline=None)
@given(data=st.binary(min_size=1, max_size=3 * BLOCK))
def test_the_root_hash_follows_from_the_bytes_alone(tmp_path_factory, data):
    found = set()
    for identity in (1, 2):
        path = tmp_path_factory.mktemp("v") / "data"
        path.write_bytes(data)
        found.add(append(path, uuid.UUID(int=identity)))
    assert len(found) == 1
