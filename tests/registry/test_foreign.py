"""What we publish, read by others: skopeo, podman (which runs it) and oras; what they publish, read by us."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from debian_registry import started
from peers import outside_of_a_chroot, peer, pinned

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.core.events import Event, Events
from kairosbuild.oci import chunked
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import write_layer
from kairosbuild.registry.documents import Item, Sent
from kairosbuild.registry.manifests import resolve
from kairosbuild.registry.publish import Published, publish
from kairosbuild.registry.pull import pull
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.store.cas import Cas

NUMBERS = count()
DISK = os.urandom(1 << 20) * 3
SAYS = "printed inside\n"


@pytest.fixture(params=["registry", "layout"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where to publish, as we write it."""
    if request.param == "layout":
        return f"oci:{tmp_path}/dist"
    return f"{request.getfixturevalue('registry')}/foreign/n{next(NUMBERS)}"


@pytest.fixture
def published(place: str, cas: Cas) -> tuple[Published, ...]:
    return send(place, cas)


def send(place: str, cas: Cas, *, limits: Limits | None = None, events: Events | None = None, method="gzip"):
    def transport(layer: Blob, method: str) -> Sent:
        if method == "gzip":
            return Sent(cas.put_bytes(gzip.compress(cas.read(layer), 1, mtime=0)))
        with cas.writer() as out:
            _, notes = chunked.compress(cas.path(layer.digest), out)
            return Sent(out.commit(), notes)

    target, _ = Registries(limits=limits).open(place)
    how = {"cas": cas, "transport": transport, "events": events or Events()}
    return publish(target, [busybox_image(cas, method), disk(cas)], ["latest"], **how)


def busybox_image(cas: Cas, method: str = "gzip") -> Item:
    busybox = Path(pinned("busybox", "busybox-static")).read_bytes()
    own = (
        () if method == "gzip" else ((Entry("zz", "file"), method.encode()),)
    )  # containers' tools remember by diffID
    rows = [
        layer(
            cas, "b", (Entry("bin", "dir", 0o755), None), (Entry("bin/busybox", "file", 0o755), busybox), *own
        ),
        layer(cas, "doomed", (Entry("gone", "file"), b"never seen"), *own),
        layer(cas, "site", (Entry("says", "file"), SAYS.encode()), (Entry(".wh.gone", "file"), b""), *own),
    ]
    document = {
        "schema": 1, "platform": "linux/amd64", "epoch": 0, "compression": method, "layers": rows,
        "config": {"Cmd": ["/bin/busybox", "cat", "/says"], "Labels": {"a": "b"}},
    }  # fmt: skip
    return Item("os", "image", cas.put_bytes(canonical.dumps(document)))


def layer(cas: Cas, name: str, *entries: tuple[Entry, bytes | None]) -> dict:
    out = io.BytesIO()
    index = write_layer(entries, out, 0)
    return {
        "name": name, "layer": cas.put_bytes(out.getvalue()).json(), "index": cas.put_bytes(index).json(),
    }  # fmt: skip


def disk(cas: Cas) -> Item:
    file = {**cas.put_bytes(DISK).json(), "title": "os.raw", "mediaType": "application/vnd.test.raw"}
    document = {
        "schema": 1, "artifactType": "application/vnd.kairosbuild.disk.v1", "files": [file],
        "annotations": {"org.example.note": "x"},
    }  # fmt: skip
    return Item("disk", "artifact", cas.put_bytes(canonical.dumps(document)))


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


# -- skopeo -----------------------------------------------------------------------------------


def skopeo_name(place: str, tag: str) -> str:
    return f"{place}:{tag}" if place.startswith("oci:") else f"docker://{place}:{tag}"


def skopeo(verb: str, *words: str) -> str:
    trust = [] if verb == "copy" else ["--tls-verify=false"]
    return run(peer("skopeo"), verb, *trust, *words)


def test_skopeo_reads_the_image(place: str, published: tuple[Published, ...], tmp_path: Path) -> None:
    seen = json.loads(skopeo("inspect", skopeo_name(place, "latest")))
    assert seen["Digest"] == published[0].digest
    assert seen["Labels"] == {"a": "b"}
    assert len(seen["Layers"]) == 3
    skopeo("copy", "--src-tls-verify=false", skopeo_name(place, "latest"), f"dir:{tmp_path}/copy")
    manifest = (tmp_path / "copy/manifest.json").read_bytes()
    assert of_bytes(manifest).digest == published[0].digest


def test_skopeo_copies_zstd_chunked(registry: str, cas: Cas, tmp_path: Path) -> None:
    """What a copy keeps is what a partial pull goes by: the annotations. Decompressed, the layers are themselves."""
    name = f"docker://{registry}/chunked/n{next(NUMBERS)}"
    (image, _) = send(name.removeprefix("docker://"), cas, method="zstd:chunked")
    skopeo("copy", "--src-tls-verify=false", f"{name}:latest", f"oci:{tmp_path}/theirs:v1")
    target, version = Registries().open(f"oci:{tmp_path}/theirs:v1")
    layers = resolve(target, version, "linux/amd64").layers
    assert resolve(target, version, "linux/amd64").digest == image.digest
    assert all(f"{chunked.NOTE}manifest-checksum" in one.annotations for one in layers)
    skopeo("copy", "--src-tls-verify=false", "--dest-decompress", f"{name}:latest", f"dir:{tmp_path}/plain")
    rows = canonical.loads(cas.read(busybox_image(cas, "zstd:chunked").document))["layers"]
    assert all((tmp_path / "plain" / row["layer"]["digest"][7:]).is_file() for row in rows)


def test_we_read_what_skopeo_copied(registry: str, cas: Cas, tmp_path: Path) -> None:
    send(f"oci:{tmp_path}/dist", cas)
    name = f"{registry}/skopeo/n{next(NUMBERS)}"
    source, there = f"oci:{tmp_path}/dist:latest", f"docker://{name}:v2s2"
    skopeo("copy", "--dest-tls-verify=false", "--format", "v2s2", source, there)
    target, _ = Registries().open(name)
    image = resolve(target, "v2s2", "linux/amd64")
    assert image.manifest.media_type == "application/vnd.docker.distribution.manifest.v2+json"
    assert len(image.layers) == 3
    target.get_blob(image.layers[0].blob, tmp_path / "layer")


def test_we_read_a_layout_that_skopeo_wrote(cas: Cas, tmp_path: Path) -> None:
    (image, _) = send(f"oci:{tmp_path}/dist", cas)
    skopeo("copy", f"oci:{tmp_path}/dist:latest", f"oci:{tmp_path}/theirs:v1")
    target, version = Registries().open(f"oci:{tmp_path}/theirs:v1")
    assert resolve(target, version, "linux/amd64").digest == image.digest
    assert resolve(target, "", "linux/amd64").digest == image.digest


# -- podman -----------------------------------------------------------------------------------


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """podman with a store of its own."""
    if os.geteuid() != 0:
        pytest.skip("podman's own store needs subordinate ids or root")
    peer("runc")
    home = tempfile.mkdtemp(prefix="kb-")  # podman wants a path of at most 50 characters
    base = [peer("podman"), "--root", f"{home}/root", "--runroot", f"{home}/run", "--runtime", "runc"]
    base += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
    yield base
    subprocess.run([*base, "rmi", "--all", "--force"], capture_output=True, check=False)
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("method", ["gzip", "zstd:chunked"])
def test_podman_runs_the_image(place: str, cas: Cas, podman: list[str], method: str) -> None:
    outside_of_a_chroot("podman")
    send(place, cas, method=method)
    name = f"{place}:latest"
    run(*podman, "pull", "-q", "--tls-verify=false", name)
    identity = run(*podman, "images", "-q", "--no-trunc").strip()
    limits = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
    alone = ["--rm", "--network", "none"]
    assert run(*podman, "run", *alone, *limits, identity) == SAYS
    listing = run(*podman, "run", *alone, *limits, identity, "/bin/busybox", "ls", "/")
    assert "says" in listing.split()
    assert "gone" not in listing.split()


# -- oras -------------------------------------------------------------------------------------


def oras(*words: str, place: str, cwd: Path | None = None) -> str:
    kind = ["--oci-layout"] if place.startswith("oci:") else ["--plain-http"]
    return run(peer("oras"), *words[:-1], *kind, words[-1].removeprefix("oci:"), cwd=cwd)


def test_oras_pulls_the_disk(place: str, published: tuple[Published, ...], tmp_path: Path) -> None:
    out = tmp_path / "pulled"
    out.mkdir()
    oras("pull", f"{place}:latest-disk", place=place, cwd=out)
    assert (out / "os.raw").read_bytes() == DISK
    manifest = json.loads(oras("manifest", "fetch", f"{place}:latest-disk", place=place))
    assert manifest["artifactType"] == "application/vnd.kairosbuild.disk.v1"
    assert manifest["subject"]["digest"] == published[0].digest


def test_we_pull_what_oras_pushed(place: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.bin").write_bytes(DISK)
    (work / "b.txt").write_text("b")
    kind = ["--oci-layout"] if place.startswith("oci:") else ["--plain-http"]
    name = f"{place.removeprefix('oci:')}:theirs"
    run(peer("oras"), "push", *kind, "--artifact-type", "application/x", name, "a.bin", "b.txt", cwd=work)
    target, version = Registries().open(f"{place}:theirs")
    files = pull(target, version, tmp_path / "out", Events())
    assert {file.name: file.read_bytes() for file in files} == {"a.bin": DISK, "b.txt": b"b"}


# -- a real registry that dies ----------------------------------------------------------------


def test_a_registry_killed_half_way_is_whole_afterwards(tmp_path: Path, cas: Cas) -> None:
    limits = Limits(connect=2, read=5, attempts=2, pause=0.01)
    with started(tmp_path) as (host, process):

        def kill(event: Event) -> None:
            if event.type == "transfer-progress" and event.data["bytes"] > 1 << 20:
                process.kill()
                process.wait()

        with pytest.raises(HostError) as caught:
            send(f"{host}/os", cas, limits=limits, events=Events(kill))
        assert caught.value.reason in {"registry-broken-off", "registry-unreachable"}
    with started(tmp_path, port=int(host.rpartition(":")[2])) as (host, _):
        target, _ = Registries().open(f"{host}/os")
        assert target.tags() == ()
        (image, artifact) = send(f"{host}/os", cas)
        assert {"latest", "latest-disk", "latest-index"} < set(target.tags())
        assert (image.skipped, artifact.skipped) == (False, False)
        for tag in ("latest", "latest-disk"):
            for blob in resolve(target, tag, "linux/amd64").blobs:
                target.get_blob(blob, tmp_path / "read" / blob.hex)


def test_a_registry_that_is_back_in_time_is_no_failure(tmp_path: Path, cas: Cas) -> None:
    """The process goes away in the middle and comes back: the blobs in flight are sent again."""
    limits = Limits(connect=2, read=5, attempts=8, pause=0.2)
    running: list = []
    stack = started(tmp_path)
    host, process = stack.__enter__()
    again = started(tmp_path, port=int(host.rpartition(":")[2]))

    def bounce(event: Event) -> None:
        if event.type == "transfer-progress" and not running:
            running.append(True)
            process.kill()
            process.wait()
            time.sleep(0.1)
            again.__enter__()

    try:
        send(f"{host}/os", cas, limits=limits, events=Events(bounce))
        target, _ = Registries().open(f"{host}/os")
        assert {"latest", "latest-disk", "latest-index"} < set(target.tags())
    finally:
        again.__exit__(None, None, None)
        stack.__exit__(None, None, None)
