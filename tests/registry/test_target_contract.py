"""What a target promises, held against a registry and a layout alike."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import MANIFEST, Manifest, Target

NUMBERS = count()
DATA = bytes(range(256)) * 20_000  # more than one chunk
BLOB = of_bytes(DATA)


@pytest.fixture(params=["registry", "layout"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    if request.param == "layout":
        return Registries().open(f"oci:{tmp_path}/layout")[0]
    host = request.getfixturevalue("registry")
    return Registries().open(f"{host}/contract/n{next(NUMBERS)}")[0]


def put(target: Target, data: bytes) -> Blob:
    target.put_blob(of_bytes(data), lambda: io.BytesIO(data))
    return of_bytes(data)


def manifest(target: Target, *layers: bytes) -> Manifest:
    rows = [{"mediaType": "application/vnd.test", **put(target, data).json()} for data in layers]
    config = {"mediaType": "application/vnd.oci.empty.v1+json", **put(target, b"{}").json()}
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": rows}
    return Manifest(MANIFEST, json.dumps(document).encode())


def stored(target: Target, *layers: bytes) -> Manifest:
    found = manifest(target, *layers)
    target.put_manifest(found)
    return found


def reason(work, *args, **kwargs) -> str:
    with pytest.raises(HostError) as caught:
        work(*args, **kwargs)
    return caught.value.reason


def test_a_blob_goes_in_and_out(target: Target, tmp_path: Path) -> None:
    moved: list[int] = []
    assert not target.has_blob(BLOB)
    assert target.put_blob(BLOB, lambda: io.BytesIO(DATA), progress=moved.append) == BLOB.size
    assert target.has_blob(BLOB)
    assert moved == sorted(moved)
    assert moved[-1] == BLOB.size
    moved.clear()
    target.get_blob(BLOB, tmp_path / "deep/x", progress=moved.append)
    assert (tmp_path / "deep/x").read_bytes() == DATA
    assert moved[-1] == BLOB.size


def test_the_empty_blob_is_a_blob(target: Target, tmp_path: Path) -> None:
    put(target, b"")
    assert target.has_blob(of_bytes(b""))
    target.get_blob(of_bytes(b""), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b""


@pytest.fixture
def unheard() -> bytes:
    """What no other test has sent: a registry may keep one store for all of its repositories."""
    return DATA + b"%d" % next(NUMBERS)


SPOILT = {
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"x",
    "altered": lambda data: data[:-1] + b"x",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("how", SPOILT)
def test_wrong_bytes_are_refused_and_leave_nothing(target: Target, unheard: bytes, how: str) -> None:
    blob, wrong = of_bytes(unheard), SPOILT[how](unheard)
    assert reason(target.put_blob, blob, lambda: io.BytesIO(wrong)) == "blob-corrupt"
    assert not target.has_blob(blob)
    put(target, unheard)  # and nothing stands in the way of the right ones
    assert target.has_blob(blob)


def test_a_missing_source_is_told(target: Target, unheard: bytes, tmp_path: Path) -> None:
    blob = of_bytes(unheard)
    assert reason(target.put_blob, blob, (tmp_path / "gone").open) == "blob-unreadable"
    assert not target.has_blob(blob)


def test_a_blob_is_what_digest_and_size_say(target: Target, tmp_path: Path) -> None:
    put(target, DATA)
    assert not target.has_blob(Blob(BLOB.digest, BLOB.size + 1))
    assert reason(target.get_blob, Blob(BLOB.digest, BLOB.size + 1), tmp_path / "x") == "registry-lied"
    assert reason(target.get_blob, of_bytes(b"never"), tmp_path / "x") == "registry-not-found"
    assert not (tmp_path / "x").exists()


def test_a_manifest_goes_in_and_out(target: Target) -> None:
    found = stored(target, b"1", b"2")
    assert target.head_manifest(found.blob.digest) == found.blob.digest
    assert target.get_manifest(found.blob.digest) == found
    assert target.tags() == ()
    target.tag({"v1": found, "latest": found})
    assert target.tags() == ("latest", "v1")
    assert target.head_manifest("v1") == found.blob.digest
    assert target.get_manifest("latest") == found


def test_what_is_not_there_is_not_there(target: Target) -> None:
    assert target.head_manifest("v1") is None
    assert target.head_manifest(of_bytes(b"x").digest) is None
    assert target.tags() == ()
    assert reason(target.get_manifest, "v1") == "registry-not-found"


def test_a_tag_moves_and_others_stay(target: Target) -> None:
    one, two = stored(target, b"1"), stored(target, b"2")
    target.tag({"a": one, "b": one})
    target.tag({"a": two})
    assert target.head_manifest("a") == two.blob.digest
    assert target.head_manifest("b") == one.blob.digest
    assert target.has_blob(of_bytes(b"1"))


def test_many_threads_share_it(target: Target) -> None:
    pieces = [str(n).encode() * 5000 for n in range(40)]
    gate = threading.Barrier(8)

    def one(part: list[bytes]) -> None:
        gate.wait()
        for piece in part:
            put(target, piece)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, [pieces[n::4] for n in range(4)] * 2))
    assert all(target.has_blob(of_bytes(piece)) for piece in pieces)
