"""Many writers at once: of one tag, of one subject's referrers, of one cache; nothing is lost, nothing is half."""

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from kairosbuild.core import canonical
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.events import Events
from kairosbuild.registry import referrers
from kairosbuild.registry.cache import SharedCache
from kairosbuild.registry.manifests import resolve
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import EMPTY, MANIFEST, Manifest, Target
from kairosbuild.store.cas import Cas
from kairosbuild.store.record import Record

NUMBERS = count()
WRITERS = 16


@pytest.fixture(params=["no referrers API", "referrers API", "layout"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "layout":
        return f"oci:{tmp_path}/dist"
    if request.param == "referrers API":
        server = request.getfixturevalue("faults")
        server.referrers = True
        return f"{server.host}/writers/n{next(NUMBERS)}"
    return f"{request.getfixturevalue('registry')}/writers/n{next(NUMBERS)}"


def opened(where: str) -> Target:
    return Registries().open(where)[0]


def put(target: Target, text: str, tag: str) -> Manifest:
    blobs = [b"{}", text.encode()]
    with target.writing():
        for data in blobs:
            target.put_blob(of_bytes(data), lambda data=data: io.BytesIO(data))
        config, layer = ({"mediaType": EMPTY, **of_bytes(data).json()} for data in blobs)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "x/y",
            "config": config,
            "layers": [layer],
        }
        manifest = Manifest(MANIFEST, canonical.dumps(document))
        target.put_manifest(manifest)
        target.tag({tag: manifest})
    return manifest


def test_sixteen_writers_of_one_tag(where: str) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        made = list(pool.map(lambda n: put(opened(where), f"writer {n}", "latest"), range(WRITERS)))
    found = resolve(opened(where), "latest", "linux/amd64")
    assert found.digest in {one.blob.digest for one in made}
    assert all(map(opened(where).has_blob, found.blobs))


def test_sixteen_writers_of_one_subjects_referrers(where: str) -> None:
    subject = put(opened(where), "the image", "latest")

    def attach(number: int) -> str:
        target = opened(where)
        file = referrers.File("text/plain", f"said by {number}".encode())
        with target.writing():
            (digest,) = referrers.attach(
                target, subject, [referrers.Referrer("x/said", (file,), f"w{number}")]
            )
        return digest

    with ThreadPoolExecutor(WRITERS) as pool:
        made = set(pool.map(attach, range(WRITERS)))
    assert {one.blob.digest for one in referrers.listed(opened(where), subject.blob.digest)} == made
    assert len(made) == WRITERS


def test_sixteen_machines_share_one_result(where: str, tmp_path: Path) -> None:
    key = "ab" * 32

    def share(number: int) -> Record:
        cas = Cas(tmp_path / f"m{number}")
        shared = SharedCache(opened(where), cas, Events())
        outputs = {"o": cas.put_bytes(b"the same"), "t": cas.put_bytes(str(number % 4).encode() * 99)}
        record = Record(key, {}, outputs, number)
        shared.put(record)
        shared.finish()
        return record

    with ThreadPoolExecutor(WRITERS) as pool:
        made = list(pool.map(share, range(WRITERS)))
    cas = Cas(tmp_path / "reader")
    shared = SharedCache(opened(where), cas, Events())
    found, held = shared.get(key)
    assert found in made
    shared.bring(held)
    assert all(map(cas.verify, held))
