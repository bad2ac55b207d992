"""Publishing: what is sent, in which order, how little the second time, and what is left after a failure."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_server import FaultServer

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Event, Events
from kairosbuild.registry.documents import Item, Sent
from kairosbuild.registry.fetch import download
from kairosbuild.registry.manifests import read_index, resolve
from kairosbuild.registry.prune import Policy, prune
from kairosbuild.registry.publish import Published, publish
from kairosbuild.registry.pull import pull
from kairosbuild.registry.referrers import listed
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.registry.target import Target
from kairosbuild.registry.transfers import in_parallel
from kairosbuild.store.cas import Cas

QUICK = Limits(connect=2, read=5, attempts=3, pause=0.001, longest=5)


class Build:
    """Documents as the kinds leave them, and a transport that counts its uses."""

    def __init__(self, cas: Cas) -> None:
        self.cas = cas
        self.compressed: list[Blob] = []

    def image(self, name: str = "os", *layers: bytes, compression: str = "gzip") -> Item:
        rows = [
            {"name": f"n{number}", "layer": self.cas.put_bytes(data).json(), "index": of_bytes(b"").json()}
            for number, data in enumerate(layers or (b"base" * 400_000, b"site"))
        ]
        document = {
            "schema": 1, "platform": "linux/amd64", "epoch": 0, "compression": compression,
            "layers": rows, "config": {"Cmd": ["/bin/sh"]},
        }  # fmt: skip
        return Item(name, "image", self.cas.put_bytes(canonical.dumps(document)))

    def disk(self, name: str = "disk", data: bytes = b"disk" * 300_000, subject: str = "") -> Item:
        file = {**self.cas.put_bytes(data).json(), "title": "os.raw", "mediaType": "application/vnd.test.raw"}
        document = {
            "schema": 1, "artifactType": "application/vnd.kairosbuild.disk.v1", "files": [file],
            "annotations": {},
        }  # fmt: skip
        return Item(name, "artifact", self.cas.put_bytes(canonical.dumps(document)), subject)

    def transport(self, layer: Blob, method: str) -> Sent:
        assert method == "gzip"
        self.compressed.append(layer)
        return Sent(self.cas.put_bytes(gzip.compress(self.cas.read(layer), mtime=0)))

    def publish(self, target: Target, *items: Item, tags=("latest",), **more) -> tuple[Published, ...]:
        how = {"cas": self.cas, "transport": self.transport, "events": Events(), **more}
        return publish(target, items, tags, **how)


@pytest.fixture
def build(cas: Cas) -> Build:
    return Build(cas)


def opened(host: str, repository: str = "os/debian") -> Target:
    return Registries(limits=QUICK).open(f"{host}/{repository}")[0]


def fallback(image: Published) -> str:
    """The tag of an image's referrers, where the registry keeps none."""
    return image.digest.replace(":", "-")


def test_an_image_and_its_disk(build: Build, faults: FaultServer) -> None:
    image, disk = build.publish(opened(faults.host), build.image(), build.disk(), tags=("latest", "1.0"))
    assert image.references == (f"{faults.host}/os/debian:latest", f"{faults.host}/os/debian:1.0")
    assert disk.references == (f"{faults.host}/os/debian:latest-disk", f"{faults.host}/os/debian:1.0-disk")
    assert faults.tags("os/debian") == {
        "latest",
        "1.0",
        "latest-disk",
        "1.0-disk",
        "latest-index",
        "1.0-index",
        fallback(image),
    }
    assert (image.skipped, disk.skipped) == (False, False)
    assert image.uploaded == image.size
    assert disk.uploaded == disk.size

    document = json.loads(faults.manifests["os/debian", "latest-disk"][1])
    assert document["subject"]["digest"] == image.digest
    assert document["artifactType"] == "application/vnd.kairosbuild.disk.v1"
    assert document["config"]["digest"] == of_bytes(b"{}").digest
    assert document["annotations"]["org.opencontainers.image.created"] == "1970-01-01T00:00:00Z"

    found = resolve(opened(faults.host), "latest", "linux/amd64")
    config = json.loads(faults.blobs["os/debian", found.config.blob.digest])
    assert config["rootfs"]["diff_ids"] == [of_bytes(b"base" * 400_000).digest, of_bytes(b"site").digest]
    assert len(config["history"]) == 2
    assert [layer.media_type for layer in found.layers] == ["application/vnd.oci.image.layer.v1.tar+gzip"] * 2


def test_the_second_time_is_one_head_for_each_tag(build: Build, faults: FaultServer) -> None:
    items = build.image(), build.disk()
    build.publish(opened(faults.host), *items)
    faults.seen.clear()
    again = build.publish(opened(faults.host), *items)
    assert [s.method for s in faults.seen] == ["HEAD"] * 3  # the image, the disk, the index of both
    assert all(p.skipped and p.uploaded == 0 for p in again)


def test_order_is_blobs_manifests_tags(build: Build, faults: FaultServer) -> None:
    build.publish(opened(faults.host), build.image(), build.disk())
    puts = [s.path for s in faults.seen if s.method == "PUT"]
    kinds = ["blob" if "/uploads/" in p else "digest" if "/sha256:" in p else "tag" for p in puts]
    kinds = [kind for kind, path in zip(kinds, puts, strict=True) if "/sha256-" not in path]
    assert kinds == sorted(kinds, key=["blob", "digest", "tag"].index)
    assert kinds.count("tag") == 3


def test_only_what_changed_is_sent(build: Build, faults: FaultServer) -> None:
    build.publish(opened(faults.host), build.image("os", b"a" * 9999, b"b"))
    faults.seen.clear()
    (image,) = build.publish(opened(faults.host), build.image("os", b"a" * 9999, b"c"))
    assert faults.count("PUT", "/uploads/") == 2  # one layer, one configuration
    assert image.uploaded < image.size


def test_another_tag_for_the_same_sends_a_tag(build: Build, faults: FaultServer) -> None:
    build.publish(opened(faults.host), build.image())
    faults.seen.clear()
    (image,) = build.publish(opened(faults.host), build.image(), tags=("latest", "2.0"))
    assert [s.path.rpartition("/")[2] for s in faults.seen if s.method == "PUT"] == ["2.0"]
    assert not image.skipped
    assert image.uploaded == 0


def test_a_list_of_what_is_published_no_more_does_not_stay(build: Build, faults: FaultServer) -> None:
    """TAG-index of an earlier publication names the new image, once there is nothing else to name."""
    target = opened(faults.host)
    build.publish(target, build.image("os", b"one"), build.disk("disk", b"d"))
    before = target.head_manifest("latest-index")
    (image,) = build.publish(target, build.image("os", b"two"))
    index = read_index(target.get_manifest("latest-index"), faults.host)
    assert target.head_manifest("latest-index") != before
    assert [one.blob.digest for one in index] == [image.digest]
    build.publish(target, build.image("os", b"three"), tags=("alone",))
    assert target.head_manifest("alone-index") is None


def test_a_tag_that_is_not_renewed_is_told_and_can_be_removed(build: Build, faults: FaultServer) -> None:
    target, said = opened(faults.host), list[Event]()
    build.publish(target, build.image("os", b"one"), build.disk("disk", b"d"), build.disk("iso", b"i"))
    build.publish(target, build.image("os", b"one"), build.disk("iso", b"i"), events=Events(said.append))
    (note,) = [one.data["message"] for one in said if one.type == "note"]
    remove = re.search(r"prune (\S+) --only (\S+) --keep-last 0", note)
    assert remove and remove.groups() == (target.name, "latest-disk")
    assert target.head_manifest("latest-disk"), "nothing goes unasked"
    prune(target, Policy(only=(remove[2],), last=0), now=0.0)
    assert {tag for tag in target.tags() if "latest" in tag} == {"latest", "latest-index", "latest-iso"}


def test_what_has_nothing_to_do_imports_little(build: Build, faults: FaultServer) -> None:
    """Logins and threads are for those who need them: half of what a repetition costs would be their import."""
    item = build.image("os", b"one")
    build.publish(opened(faults.host), item)
    asked = len(faults.seen)
    sent = build.transport(of_bytes(b"one"), "gzip").blob
    target = opened(faults.host).name
    program = f"""
import sys
from pathlib import Path
from kairosbuild.core.digest import Blob
from kairosbuild.registry.documents import Item, Sent
from kairosbuild.registry.publish import publish
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas
cas = Cas(Path({str(build.cas.root)!r}))
item = Item("os", "image", Blob({item.document.digest!r}, {item.document.size}))
how = {{"cas": cas, "transport": lambda *_: Sent(Blob({sent.digest!r}, {sent.size})), "events": None}}
done = publish(Registries().open({target!r})[0], [item], ["latest"], **how)
assert done[0].skipped
print([name for name in ("requests", "oras", "urllib3", "concurrent.futures", "tempfile") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert len(faults.seen) == asked + 1


def test_blobs_of_a_known_repository_are_mounted(build: Build, faults: FaultServer) -> None:
    layer = build.transport(build.cas.put_bytes(b"a" * 9999), "gzip").blob
    faults.blobs["base/debian", layer.digest] = build.cas.read(layer)
    item = build.image("os", b"a" * 9999)
    (image,) = build.publish(opened(faults.host), item, origin={layer.digest: "base/debian"}.get)
    assert image.size - image.uploaded == layer.size


def test_uncompressed_layers_go_as_they_are(build: Build, faults: FaultServer) -> None:
    build.publish(opened(faults.host), build.image("os", b"plain", compression="none"))
    assert build.compressed == []
    found = resolve(opened(faults.host), "latest", "linux/amd64")
    assert found.layers[0].blob == of_bytes(b"plain")
    assert found.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar"


def test_one_subject_of_several_images(build: Build, faults: FaultServer) -> None:
    images = build.image("os", b"1"), build.image("tools", b"2")
    disks = build.disk(subject="tools"), build.disk("other")
    _, tools, *_ = build.publish(opened(faults.host), *images, *disks)
    named = {"latest", "latest-tools", "latest-disk", "latest-other", "latest-index"}
    assert faults.tags("os/debian") == {*named, fallback(tools)}
    assert json.loads(faults.manifests["os/debian", "latest-disk"][1])["subject"]["digest"] == tools.digest
    assert "subject" not in json.loads(faults.manifests["os/debian", "latest-other"][1])


def test_names_that_make_no_tag_are_refused_before_anything_moves(build: Build, faults: FaultServer) -> None:
    for tags in (("bad tag",), ("latest", "latest"), ("x" * 125,)):
        with pytest.raises(InputError) as caught:
            build.publish(opened(faults.host), build.image(), build.disk(), tags=tags)
        assert caught.value.reason == "bad-tag"
    assert faults.seen == []


def test_events_tell_of_every_blob(build: Build, faults: FaultServer) -> None:
    told: list[Event] = []
    build.publish(opened(faults.host), build.image(), build.disk(), events=Events(told.append))
    started = {e.subject: e.data["size"] for e in told if e.type == "transfer-started"}
    finished = {e.subject: e.data["bytes"] for e in told if e.type == "transfer-finished"}
    assert len(started) == 5
    assert started == finished
    last = {e.subject: e.data["bytes"] for e in told if e.type == "transfer-progress"}
    assert last == {k: v for k, v in started.items() if v}


def test_an_index_ties_together_what_belongs_together(build: Build, faults: FaultServer) -> None:
    image, disk = build.publish(opened(faults.host), build.image(), build.disk())
    index = json.loads(faults.manifests["os/debian", "latest-index"][1])
    rows = {row["annotations"]["dev.kairosbuild.node"]: row for row in index["manifests"]}
    assert rows["os"]["digest"] == image.digest and rows["disk"]["digest"] == disk.digest
    assert rows["disk"]["artifactType"] == "application/vnd.kairosbuild.disk.v1"
    build.publish(opened(faults.host, "os/alone"), build.image())
    assert faults.tags("os/alone") == {"latest"}


@pytest.mark.parametrize("referrers", [True, False])
def test_an_artifact_is_found_from_its_image(build: Build, faults: FaultServer, referrers: bool) -> None:
    faults.referrers = referrers
    image, disk = build.publish(opened(faults.host), build.image(), build.disk())
    (found,) = listed(opened(faults.host), image.digest)
    assert found.blob.digest == disk.digest
    assert (fallback(image) in faults.tags("os/debian")) != referrers


def test_a_dry_run_sends_nothing_and_tells_how_much_it_would(build: Build, faults: FaultServer) -> None:
    items = build.image(), build.disk()
    dry = build.publish(opened(faults.host), *items, dry=True)
    assert {s.method for s in faults.seen} == {"HEAD"}
    wet = build.publish(opened(faults.host), *items)
    assert [(p.digest, p.uploaded) for p in dry] == [(p.digest, p.uploaded) for p in wet]


def test_fixed_tags_are_not_moved(build: Build, faults: FaultServer) -> None:
    target = opened(faults.host)
    how = {"tags": ("v1", "latest"), "fixed": ("v*",)}
    build.publish(target, build.image("os", b"1"), **how)
    assert build.publish(target, build.image("os", b"1"), **how)[0].skipped
    faults.seen.clear()
    with pytest.raises(HostError) as caught:
        build.publish(target, build.image("os", b"2"), **how)
    assert caught.value.reason == "tag-immutable" and {s.method for s in faults.seen} == {"HEAD"}


def test_a_registry_that_moves_no_tag_is_understood(build: Build, faults: FaultServer) -> None:
    body = b'{"errors":[{"code":"TAG_INVALID","message":"The image tag is immutable"}]}'
    faults.fault("PUT .*/latest$", status=400, body=body)
    with pytest.raises(HostError) as caught:
        build.publish(opened(faults.host), build.image())
    assert caught.value.reason == "tag-immutable"


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "match", ["HEAD", "POST", "PUT .*/uploads", "PUT .*/manifests/sha256", "PUT .*/latest$"]
)
@pytest.mark.parametrize("how", [{"reset": True}, {"status": 500}, {"status": 403}, {"status": 429}])
def test_a_registry_that_dies_has_no_tag_on_half_an_image(
    build: Build, faults: FaultServer, match: str, how: dict
) -> None:
    fault = faults.fault(match, times=99, **how)
    with pytest.raises(HostError):
        build.publish(opened(faults.host), build.image(), build.disk())
    complete(faults)
    fault.times = 0
    image, _ = build.publish(opened(faults.host), build.image(), build.disk())
    assert faults.tags("os/debian") == {"latest", "latest-disk", "latest-index", fallback(image)}
    complete(faults)


def test_a_damaged_blob_is_not_published_and_set_aside(build: Build, faults: FaultServer) -> None:
    item = build.image("os", b"a" * 100_000)
    compressed = build.transport(of_bytes(b"a" * 100_000), "gzip").blob
    file = build.cas.path(compressed.digest)
    file.chmod(0o644)
    file.write_bytes(bytes(compressed.size))
    with pytest.raises(HostError) as caught:
        build.publish(opened(faults.host), item, transport=lambda *_: Sent(compressed))
    assert caught.value.reason == "blob-corrupt"
    assert faults.tags("os/debian") == set()
    assert not file.exists()
    build.publish(opened(faults.host), item)
    complete(faults)


def complete(server: FaultServer) -> None:
    """Every tag leads to blobs that are all there and are what they are called."""
    for (repository, _), (_, data) in server.manifests.items():
        document = json.loads(data)
        for named in document.get("manifests", []):
            assert (repository, named["digest"]) in server.manifests
        for named in (document["config"], *document["layers"]) if "config" in document else ():
            assert of_bytes(server.blobs[repository, named["digest"]]).json().items() <= named.items()


# -- the layout -------------------------------------------------------------------------------


def test_a_layout_heals_and_drops_what_no_tag_needs(build: Build, tmp_path: Path) -> None:
    target, _ = Registries().open(f"oci:{tmp_path}/dist/debian")
    folder = tmp_path / "dist/debian"
    build.publish(target, build.image("os", b"a" * 999, b"b"), build.disk())
    first = names(folder)
    (skipped,) = build.publish(target, build.image("os", b"a" * 999, b"b"))
    assert skipped.skipped
    victim = next(file for file in (folder / "blobs/sha256").iterdir() if file.stat().st_size > 1_000_000)
    victim.unlink()
    build.publish(target, build.image("os", b"a" * 999, b"b"), build.disk())
    assert names(folder) == first

    build.publish(target, build.image("os", b"a" * 999, b"c"), build.disk())
    gone = first - names(folder)
    assert (
        len(gone) == 5
    )  # a layer, the configuration, the two manifests (the disk's names the image), the index
    found = resolve(target, "latest", "linux/amd64")
    assert all(map(target.has_blob, found.blobs))
    assert target.tags() == ("latest", "latest-disk", "latest-index")


def test_a_foreign_folder_is_not_taken_for_a_layout(build: Build, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("[1, 2]")
    target, _ = Registries().open(f"oci:{tmp_path}")
    with pytest.raises(HostError) as caught:
        build.publish(target, build.image())
    assert caught.value.reason == "bad-layout"
    assert (tmp_path / "index.json").read_text() == "[1, 2]"


def names(folder: Path) -> set[str]:
    return {file.name for file in (folder / "blobs/sha256").iterdir()}


# -- and back ---------------------------------------------------------------------------------


def test_what_was_published_comes_back(build: Build, registry: str, tmp_path: Path) -> None:
    host = opened(registry, "back/debian")
    (image, _) = build.publish(host, build.image(), build.disk())
    other = Cas(tmp_path / "other")
    found = resolve(host, "latest", "linux/amd64")
    assert found.digest == image.digest
    moved = download(host, found.blobs, other, Events())
    assert moved == sum(blob.size for blob in found.blobs)
    assert all(map(other.verify, found.blobs))
    assert download(host, found.blobs, other, Events()) == 0
    assert list((tmp_path / "other/tmp").iterdir()) == []

    (file,) = pull(host, "latest-disk", tmp_path / "out", Events())
    assert file == tmp_path / "out/os.raw"
    assert file.read_bytes() == b"disk" * 300_000
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["os.raw"]


def test_a_killed_publisher_leaves_nothing_for_long(build: Build, tmp_path: Path) -> None:
    program = f"""
import io, os, signal
from pathlib import Path
from kairosbuild.core.digest import of_bytes
from kairosbuild.registry.layout import LayoutTarget
def die(moved):
    os.kill(os.getpid(), signal.SIGKILL)
target = LayoutTarget(Path({str(tmp_path / "dist")!r}))
with target.writing():
    target.put_blob(of_bytes(b"x" * 9), lambda: io.BytesIO(b"x" * 9), progress=die)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path / "dist")) == 1
    target, _ = Registries().open(f"oci:{tmp_path}/dist")
    assert target.tags() == ()
    build.publish(target, build.image())
    assert not [name for name in names(tmp_path / "dist") if not re.fullmatch("[0-9a-f]{64}", name)]


def test_publishers_of_one_layout_take_turns(build: Build, tmp_path: Path) -> None:
    """Each drops what only the tag it replaces needed, which may be what another is about to count on."""
    images = [build.image("os", b"a" * 99_999, bytes([n])) for n in range(4)]

    def work(number: int) -> None:
        target, _ = Registries().open(f"oci:{tmp_path}/dist")
        for turn in range(6):
            build.publish(target, images[(number + turn) % 4])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    target, _ = Registries().open(f"oci:{tmp_path}/dist")
    found = resolve(target, "latest", "linux/amd64")
    assert all(map(target.has_blob, found.blobs))
    assert len(names(tmp_path / "dist")) == 4


def test_an_interrupt_does_not_wait_for_the_registry(build: Build) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        blobs = [of_bytes(bytes([n])) for n in range(4)]
        target, _ = Registries().open(f"127.0.0.1:{silent.getsockname()[1]}/a")
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            in_parallel(target.has_blob, blobs)
        timer.join()
