import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from local_archive import make_tar
from small_locker import Made
from small_task import SmallTask

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import InputError
from kairosbuild.graph.node import Input
from kairosbuild.kinds.base import Base, BaseSpec, DebianSpec
from kairosbuild.oci.index import Index
from kairosbuild.store.store import Store

INDEX = "application/vnd.oci.image.index.v1+json"
LOWER = make_tar({"etc": None, "etc/a": b"lower", "etc/b": b"b", "usr/bin/x": b"x"})
UPPER = make_tar({"etc/a": b"upper", "etc/.wh.b": b""})


def image(
    reference: str, name: str, *, platform: str = "amd64", layers: tuple[bytes, ...] = ()
) -> dict[str, bytes]:
    """What a registry holds for an image of these layers."""
    packed = layers or (gzip.compress(LOWER), zstandard.ZstdCompressor().compress(UPPER))
    blobs = [of_bytes(layer) for layer in packed]
    config = of_bytes(b"{}").json()
    said = {"schemaVersion": 2, "config": config, "layers": [blob.json() for blob in blobs]}
    manifest = json.dumps(said).encode()
    about: dict[str, Any] = {
        **of_bytes(manifest).json(),
        "platform": {"os": "linux", "architecture": platform},
    }
    index = json.dumps({"mediaType": INDEX, "manifests": [about]}).encode()
    found = {reference: index, f"{name}@{of_bytes(manifest).digest}": manifest}
    return found | {f"{name}@{blob.digest}": layer for blob, layer in zip(blobs, packed, strict=True)}


@pytest.mark.parametrize(
    ("written", "reference", "name"),
    [
        ("h.example:5000/os/debian:1", "oci://h.example:5000/os/debian:1", "oci://h.example:5000/os/debian"),
        ("oci-layout:dir:13", "oci-layout:dir:13", "oci-layout:dir"),
    ],
)
def test_an_image(locker: Made, written: str, reference: str, name: str) -> None:
    made = locker(images=image(reference, name))
    spec = BaseSpec(image=written)
    locked = Base().lock(spec, made)
    assert [m.uri.partition("@")[0] for m in locked.materials] == [name, name]
    outputs = made.build(Base(), spec)
    index = Index.loads(made.path(outputs["index"]).read_bytes())
    assert list(index.paths()) == ["etc", "etc/a", "usr", "usr/bin", "usr/bin/x"]
    place = index["etc/a"]
    assert made.path(outputs["layer"]).read_bytes()[place.data : place.data + 5] == b"upper"
    assert json.loads(made.path(outputs["stack"]).read_bytes()) == [
        {"layer": outputs["layer"].json(), "index": outputs["index"].json()}
    ]


def test_another_platform(locker: Made) -> None:
    made = locker(images=image("oci://h.example/a:1", "oci://h.example/a", platform="arm64"))
    with pytest.raises(InputError) as error:
        Base().lock(BaseSpec(image="h.example/a:1"), made)
    assert error.value.reason == "base-platform"
    assert "linux/arm64" in error.value.hint


@pytest.mark.parametrize("manifest", [b"<html>", b"[]", b"{}"])
def test_no_image(locker: Made, manifest: bytes) -> None:
    with pytest.raises(InputError) as error:
        Base().lock(BaseSpec(image="h.example/a"), locker(images={"oci://h.example/a": manifest}))
    assert error.value.reason == "base-image"


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_tarball(debian_store: Store, tmp_path: Path, pack: Any) -> None:
    file = tmp_path / "root.tar"
    file.write_bytes(pack(LOWER))
    task = SmallTask(debian_store, BaseSpec(tarball="root.tar"), sources={"tarball": file})
    plain = Base().build(task)
    blob = debian_store.cas.put_bytes(pack(LOWER))
    inputs = {"archive": (Input("tar", "fetch", {"file": blob}),)}
    assert Base().build(SmallTask(debian_store, BaseSpec(archive="tar"), inputs=inputs)) == plain
    index = Index.loads(debian_store.cas.path(plain["index"].digest).read_bytes())
    assert list(index.paths()) == ["etc", "etc/a", "etc/b", "usr/bin/x"]


def test_a_hostile_tarball(debian_store: Store, tmp_path: Path) -> None:
    file = tmp_path / "root.tar"
    file.write_bytes(make_tar({"../../etc/x": b""}))
    with pytest.raises(InputError) as error:
        Base().build(SmallTask(debian_store, BaseSpec(tarball="root.tar"), sources={"tarball": file}))
    assert error.value.reason == "tar-path"


@pytest.mark.parametrize(
    "spec",
    [BaseSpec(), BaseSpec(image="a/b", tarball="c"), BaseSpec(debian=DebianSpec(suite="sid"), image="a/b")],
)
def test_exactly_one_source(locker: Made, spec: BaseSpec) -> None:
    with pytest.raises(InputError) as error:
        Base().lock(spec, locker())
    assert error.value.reason == "base-source"
