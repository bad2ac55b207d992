"""Reading what strangers published: indexes, odd manifests, single blobs, titles out of the folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_server import FaultServer
from hypothesis import given, settings
from hypothesis import strategies as st

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, InputError, KbuildError
from kairosbuild.core.events import Events
from kairosbuild.registry.fetch import download
from kairosbuild.registry.manifests import read_image, resolve
from kairosbuild.registry.pull import pull
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.registry.target import INDEX, MANIFEST, TITLE, Manifest, Target
from kairosbuild.store.cas import Cas

QUICK = Limits(connect=2, read=5, attempts=2, pause=0.001)


class Shelf:
    """Puts documents into the registry in memory, however odd."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.target: Target = Registries(limits=QUICK).open(f"{server.host}/a")[0]

    def blob(self, data: bytes) -> dict:
        self.server.blobs["a", of_bytes(data).digest] = data
        return {"mediaType": "application/vnd.test", **of_bytes(data).json()}

    def manifest(self, document: object, tag: str = "latest", media_type: str = MANIFEST) -> dict:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        for name in (tag, of_bytes(data).digest):
            self.server.manifests["a", name] = media_type, data
        return {"mediaType": media_type, **of_bytes(data).json()}

    def image(self, *layers: bytes, tag: str = "latest", **more: object) -> dict:
        rows = [self.blob(data) for data in layers]
        return self.manifest({"schemaVersion": 2, "config": self.blob(b"{}"), "layers": rows, **more}, tag)

    def titled(self, files: list[tuple[str, bytes]]) -> None:
        rows = [{**self.blob(data), "annotations": {TITLE: title}} for title, data in files]
        self.manifest({"schemaVersion": 2, "config": self.blob(b"{}"), "layers": rows})


@pytest.fixture
def shelf(faults: FaultServer) -> Shelf:
    return Shelf(faults)


def reason(work, *args, **kwargs) -> str:
    with pytest.raises(KbuildError) as caught:
        work(*args, **kwargs)
    return caught.value.reason


def platform(system: str, architecture: str, variant: str = "") -> dict:
    return {"platform": {"os": system, "architecture": architecture, "variant": variant}}


# -- manifests --------------------------------------------------------------------------------


def test_an_index_leads_to_the_platform(shelf: Shelf) -> None:
    arm = shelf.image(b"arm", tag="arm")
    amd = shelf.image(b"amd", tag="amd")
    rows = [{**arm, **platform("linux", "arm64", "v8")}, {**amd, **platform("linux", "amd64")}]
    shelf.manifest({"schemaVersion": 2, "manifests": rows}, "latest", INDEX)
    assert resolve(shelf.target, "latest", "linux/amd64").digest == amd["digest"]
    assert resolve(shelf.target, "latest", "linux/arm64").digest == arm["digest"]
    assert resolve(shelf.target, "latest", "linux/arm64/v8").digest == arm["digest"]
    with pytest.raises(InputError) as caught:
        resolve(shelf.target, "latest", "linux/riscv64")
    assert caught.value.reason == "no-such-platform"
    assert "linux/amd64, linux/arm64/v8" in caught.value.hint


def test_an_index_of_indexes_ends(shelf: Shelf) -> None:
    row = shelf.image(b"x")
    for _ in range(4):
        row = shelf.manifest({"schemaVersion": 2, "manifests": [row]}, "latest", INDEX)
    assert reason(resolve, shelf.target, "latest", "linux/amd64") == "bad-manifest"


GOOD_DIGEST = of_bytes(b"{}").digest
ODD = [
    b"", b"{", b"[]", b"null", b'"x"', b"{}", b"[" * 100_000, b"\xff\xfe",
    {"config": None, "layers": []},
    {"config": {"digest": GOOD_DIGEST, "size": 2}, "layers": "x"},
    {"config": {"digest": "sha512:00", "size": 2}, "layers": []},
    {"config": {"digest": "../../etc/passwd", "size": 2}, "layers": []},
    {"config": {"digest": GOOD_DIGEST, "size": -1}, "layers": []},
    {"config": {"digest": GOOD_DIGEST, "size": "2"}, "layers": []},
    {"config": {"digest": GOOD_DIGEST, "size": True}, "layers": []},
    {"config": {"digest": GOOD_DIGEST, "size": 2}, "layers": [3]},
    {"config": {"digest": GOOD_DIGEST, "size": 2, "annotations": []}, "layers": [{}]},
    {"config": {"digest": GOOD_DIGEST, "size": 2}, "layers": [], "mediaType": "application/x"},
    {"config": {"digest": GOOD_DIGEST, "size": 2}, "layers": [], "mediaType": ["x"]},
    {"mediaType": INDEX},
    {"mediaType": INDEX, "manifests": [None]},
    {"mediaType": INDEX, "manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]},
]  # fmt: skip


@pytest.mark.parametrize("document", ODD, ids=range(len(ODD)))
def test_odd_manifests_are_refused(shelf: Shelf, document: object) -> None:
    shelf.manifest(document)
    assert reason(resolve, shelf.target, "latest", "linux/amd64") == "bad-manifest"


FIELDS = ["config", "layers", "digest", "size", "mediaType", "annotations", "artifactType"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(GOOD_DIGEST),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=12,
)


@settings(deadline=None)  # a loaded machine is no failure
@given(JSON)
def test_any_document_is_read_or_refused(document: object) -> None:
    try:
        image = read_image(Manifest(MANIFEST, json.dumps(document).encode()), "x")
    except HostError as problem:
        assert problem.reason == "bad-manifest"
        return
    assert image.config.blob.digest == GOOD_DIGEST


# -- fetch ------------------------------------------------------------------------------------


def test_fetch_gets_manifests_and_blobs(shelf: Shelf, tmp_path: Path) -> None:
    row = shelf.image(b"layer")
    layer = of_bytes(b"layer")
    registries = Registries(limits=QUICK)
    uri = f"oci://{shelf.server.host}/a"
    manifest = registries.fetch(uri, tmp_path / "m")
    assert manifest.digest == row["digest"] == of_bytes((tmp_path / "m").read_bytes()).digest
    assert registries.fetch(f"{uri}:latest", tmp_path / "m") == manifest
    assert registries.fetch(f"{uri}@{manifest.digest}", tmp_path / "m") == manifest
    assert registries.fetch(uri, tmp_path / "m", digest=manifest.digest) == manifest
    assert registries.fetch(uri, tmp_path / "m", digest=manifest.digest, size=manifest.size) == manifest
    assert registries.fetch(uri, tmp_path / "b", digest=layer.digest, size=layer.size) == layer
    assert (tmp_path / "b").read_bytes() == b"layer"
    wrong = {"digest": manifest.digest, "size": manifest.size + 1}
    assert reason(registries.fetch, uri, tmp_path / "c", **wrong) == "registry-lied"
    absent = {"digest": of_bytes(b"?").digest, "size": 1}
    assert reason(registries.fetch, uri, tmp_path / "c", **absent) == "registry-not-found"
    assert not (tmp_path / "c").exists()


def test_download_stops_at_the_first_lie_and_leaves_nothing(shelf: Shelf, tmp_path: Path) -> None:
    rows = [shelf.blob(bytes([n]) * 9999) for n in range(20)]
    blobs = [of_bytes(bytes([n]) * 9999) for n in range(20)]
    shelf.server.fault(f"GET .*{rows[7]['digest']}", times=9, change=lambda data: data[::-1][:-1] + b"\0")
    cas = Cas(tmp_path / "cas")
    assert reason(download, shelf.target, blobs, cas, Events(), jobs=3) == "registry-lied"
    assert not cas.has(blobs[7])
    assert list((tmp_path / "cas/tmp").iterdir()) == []
    assert all(cas.verify(blob) for blob in blobs if cas.has(blob))


# -- pull -------------------------------------------------------------------------------------

UNSAFE = [
    "../x", "/etc/passwd", "a/../../x", "..", ".", "", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "a/./b",
]  # fmt: skip


@pytest.mark.parametrize("title", UNSAFE)
def test_titles_stay_in_the_folder(shelf: Shelf, tmp_path: Path, title: str) -> None:
    shelf.titled([("fine", b"1"), (title, b"2")])
    assert reason(pull, shelf.target, "latest", tmp_path / "out", Events()) == "unsafe-title"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_link_in_the_folder_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "outside")
    (tmp_path / "out/file").symlink_to(tmp_path / "outside/file")
    shelf.titled([("sub/x", b"1")])
    assert reason(pull, shelf.target, "latest", tmp_path / "out", Events()) == "unsafe-title"
    shelf.titled([("file", b"1")])
    pull(shelf.target, "latest", tmp_path / "out", Events())
    assert (tmp_path / "out/file").read_bytes() == b"1"
    assert list((tmp_path / "outside").iterdir()) == []


def test_all_files_or_none(shelf: Shelf, tmp_path: Path) -> None:
    shelf.titled([("a", b"1"), ("sub/b", b"22"), ("same", b"1")])
    files = pull(shelf.target, "latest", tmp_path / "out", Events())
    assert [(str(f.relative_to(tmp_path / "out")), f.read_bytes()) for f in files] == [
        ("a", b"1"), ("sub/b", b"22"), ("same", b"1"),
    ]  # fmt: skip
    (tmp_path / "out/a").write_bytes(b"edited")
    assert (tmp_path / "out/same").read_bytes() == b"1"

    shelf.server.fault(f"GET .*{of_bytes(b'22').digest}", times=9, change=lambda _: b"33")
    assert reason(pull, shelf.target, "latest", tmp_path / "other", Events()) == "registry-lied"
    assert list((tmp_path / "other").iterdir()) == []


def test_an_image_has_no_files_to_pull(shelf: Shelf, tmp_path: Path) -> None:
    shelf.image(b"layer")
    assert reason(pull, shelf.target, "latest", tmp_path / "out", Events()) == "no-titled-files"


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "folder", "version"),
    [
        ("oci:dist/debian", "dist/debian", ""),
        ("oci-layout:dist/debian:v1", "dist/debian", "v1"),
        ("oci:/a:b/c", "/a:b/c", ""),
        (f"oci:d@{GOOD_DIGEST}", "d", GOOD_DIGEST),
        (f"oci:d:t@{GOOD_DIGEST}", "d", GOOD_DIGEST),
    ],
)
def test_layouts_by_name(text: str, folder: str, version: str) -> None:
    target, found = Registries().open(text)
    assert (target.name, found) == (f"oci:{folder}", version)


@pytest.mark.parametrize("text", ["oci:", "oci::tag", "oci:d:-x", "oci:d@sha256:12", "debian"])
def test_names_that_are_none(text: str) -> None:
    assert reason(Registries().open, text) == "bad-reference"


def test_hosts_share_a_client_and_plain_http_is_by_name() -> None:
    registries = Registries(insecure=["reg.example.com:5000"])
    one, two = (registries.open(f"reg.example.com:5000/{name}")[0] for name in "ab")
    assert one._client is two._client
    assert one._client.url(one.reference, "x").startswith("http://")
    other, _ = registries.open("reg.example.com/a")
    assert other._client.url(other.reference, "x").startswith("https://")


def test_a_layout_needs_no_http_library(tmp_path: Path) -> None:
    program = (
        "import sys; from kairosbuild.registry.registries import Registries\n"
        f"Registries().open('oci:{tmp_path}')[0].head_manifest('latest')\n"
        "sys.exit(', '.join({'oras', 'requests', 'urllib3', 'asyncio'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
