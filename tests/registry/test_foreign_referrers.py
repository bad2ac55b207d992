"""Foreign clients and a registry with the referrers API: our own small one, since none is to be had as a package.

`KBUILD_TEST_REGISTRY=PROGRAM` puts another one in docker-registry's place in all tests (docs/tested.md).
"""

import json
import subprocess
from pathlib import Path

import pytest
from fault_server import FaultServer
from peers import peer
from test_foreign import busybox_image, disk

from kairosbuild.core.events import Events
from kairosbuild.registry import referrers
from kairosbuild.registry.documents import Sent
from kairosbuild.registry.publish import publish
from kairosbuild.registry.pull import pull
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas


@pytest.fixture
def modern(faults: FaultServer) -> FaultServer:
    faults.referrers = True
    return faults


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def send(where: str, cas: Cas) -> tuple:
    import gzip

    def transport(layer, _):
        return Sent(cas.put_bytes(gzip.compress(cas.read(layer), 1, mtime=0)))

    items = [busybox_image(cas), disk(cas)]
    return publish(
        Registries().open(where)[0], items, ["latest"], cas=cas, transport=transport, events=Events()
    )


def test_oras_discovers_our_disk_by_the_api(modern: FaultServer, cas: Cas, tmp_path: Path) -> None:
    _, artifact = send(f"{modern.host}/os", cas)
    found = json.loads(
        run(peer("oras"), "discover", "--plain-http", "--format=json", f"{modern.host}/os:latest")
    )
    rows = found.get("manifests") or found["referrers"]
    assert [row["digest"] for row in rows] == [artifact.digest]
    assert not [tag for tag in modern.tags("os") if tag.startswith("sha256-")], "no fallback where the API is"
    run(peer("oras"), "pull", "--plain-http", f"{modern.host}/os:latest-disk", "-o", str(tmp_path / "out"))
    assert (tmp_path / "out/os.raw").stat().st_size == 3 << 20


def test_we_find_what_oras_attached(modern: FaultServer, cas: Cas, tmp_path: Path) -> None:
    image, _ = send(f"{modern.host}/os", cas)
    (tmp_path / "note.txt").write_text("by hand")
    run(
        peer("oras"), "attach", "--plain-http", "--artifact-type", "application/note", f"{modern.host}/os:latest",
        "note.txt:text/plain", cwd=tmp_path,
    )  # fmt: skip
    target, _ = Registries().open(f"{modern.host}/os")
    (found,) = referrers.listed(target, image.digest, "application/note")
    pull(target, found.blob.digest, tmp_path / "back", Events())
    assert (tmp_path / "back/note.txt").read_text() == "by hand"


@pytest.mark.parametrize("client", ["skopeo", "crane"])
def test_others_copy_it_in_and_out(modern: FaultServer, cas: Cas, tmp_path: Path, client: str) -> None:
    image, _ = send(f"{modern.host}/os", cas)
    if client == "skopeo":
        tls = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        run(
            peer("skopeo"),
            "copy",
            *tls,
            f"docker://{modern.host}/os:latest",
            f"docker://{modern.host}/two:latest",
        )
    else:
        crane = peer("crane", "crane", "sid")
        run(crane, "pull", "--insecure", "--format=oci", f"{modern.host}/os:latest", str(tmp_path / "layout"))
        run(crane, "push", "--insecure", str(tmp_path / "layout"), f"{modern.host}/two:latest")
    assert Registries().open(f"{modern.host}/two")[0].head_manifest("latest") == image.digest
