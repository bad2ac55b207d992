"""Dockerfiles built by the real buildah in the real sandbox; what is published serves the next one as its FROM."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from debian_registry import started
from peers import peer, pinned

from kairosbuild.execute import userns

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(userns.alone(), reason="buildah takes every owner: neither root nor subordinate ids"),
]

DOCKERFILE = """\
ARG FLAVOUR=plain
FROM busybox AS build
COPY src/word /word
RUN tr a-z A-Z < /word > /loud && echo "$(id -u) $(hostname) $(cat /proc/net/dev | grep -c :)" > /facts
FROM busybox
ENV FLAVOUR=plain
COPY --from=build /loud /facts /srv/
COPY --chown=33:33 bin/tool /usr/bin/tool
RUN echo "$FLAVOUR" > /srv/flavour && rm /etc/gone && mkdir -p /srv/a/b && chown 7:8 /srv/a/b
WORKDIR /srv
CMD ["/usr/bin/tool"]
"""
RECIPE = """\
version: 1
name: small
nodes:
  busybox: {kind: base, tarball: base.tar}
  built:   {kind: dockerfile, on: [busybox], file: docker/Dockerfile, context: docker}
  os:      {kind: image, layers: [busybox, built]}
publish: {targets: [os], to: PLACE}
"""
AGAIN = """\
version: 1
name: again
nodes:
  more: {kind: dockerfile, file: More, images: [PLACE:latest]}
  os:   {kind: image, layers: [more]}
publish: {targets: [os], to: PLACE-more}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        yield host


@pytest.fixture
def workspace(tmp_path: Path, registry: str) -> Path:
    (tmp_path / "BUILD.yaml").write_text("version: 1\nrecipes: [small.yaml]\n")
    for name in ("docker/src", "docker/bin", "docker/ignored"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "docker/Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "docker/.dockerignore").write_text("src/*.bak\n")
    (tmp_path / "docker/src/word").write_text(uuid4().hex + "\n")
    (tmp_path / "docker/bin/tool").write_text("#!/bin/sh\ncat flavour loud; stat -c %u:%g a/b\n")
    (tmp_path / "docker/bin/tool").chmod(0o755)
    (tmp_path / "docker/README").write_text("nobody copies this\n")
    (tmp_path / "small.yaml").write_text(RECIPE.replace("PLACE", f"{registry}/docker/{tmp_path.name}"))
    _busybox(tmp_path / "base.tar")
    return tmp_path


def _busybox(target: Path) -> None:
    program = Path(pinned("busybox", "busybox-static")).read_bytes()
    with tarfile.open(target, "w") as tar:
        for name in ("bin", "dev", "etc", "proc", "run", "srv", "sys", "tmp", "usr", "usr/bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        for name, content in {
            "bin/busybox": program,
            "etc/gone": b"",
            "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name in (
            "sh",
            "tr",
            "cat",
            "id",
            "grep",
            "hostname",
            "echo",
            "rm",
            "mkdir",
            "chown",
            "stat",
            "touch",
        ):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)


def kbuild(workspace: Path, *words: str, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "kairosbuild", *words, "--json", "--cache-dir", str(CACHE)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-6000:]
    return {**json.loads(done.stdout), "said": done.stderr}


def layers(workspace: Path, place: str) -> list[dict[str, tarfile.TarInfo]]:
    """The members of each published layer, read by skopeo."""
    into = workspace / "copied"
    command = [
        peer("skopeo"),
        "copy",
        "-q",
        "--src-tls-verify=false",
        f"docker://{place}:latest",
        f"dir:{into}",
    ]
    subprocess.run(command, check=True)
    found = []
    for one in json.loads((into / "manifest.json").read_text())["layers"]:
        with tarfile.open(into / one["digest"].removeprefix("sha256:")) as tar:
            found.append({member.name.rstrip("/"): member for member in tar})
    return found


def test_its_layers_become_ours_and_what_we_publish_is_a_fine_from(workspace: Path, registry: str) -> None:
    place = f"{registry}/docker/{workspace.name}"
    kbuild(workspace, "run", "small.yaml")
    base, *own = layers(workspace, place)
    assert "bin/busybox" in base and "etc/gone" in base
    assert [sorted(path for path, one in layer.items() if not one.isdir()) for layer in own] == [
        ["srv/facts", "srv/loud"], ["usr/bin/tool"], ["etc/.wh.gone", "srv/flavour"],
    ]  # fmt: skip
    assert (own[1]["usr/bin/tool"].uid, own[1]["usr/bin/tool"].mode) == (33, 0o755)
    assert (own[2]["srv/a/b"].uid, own[2]["srv/a/b"].gid) == (7, 8)
    (workspace / "More").write_text(f"FROM {place}:latest\nRUN /usr/bin/tool > /srv/said; touch /srv/more\n")
    (workspace / "again.yaml").write_text(AGAIN.replace("PLACE", place))
    kbuild(workspace, "run", "again.yaml", "-o", "os=again.oci")
    lock = (workspace / "again.lock").read_text()
    assert "sha256:" in lock
    more = layers(workspace, f"{place}-more")
    assert [sorted(layer) for layer in more[:-1]] == [sorted(layer) for layer in (base, *own)]
    assert {path for path, one in more[-1].items() if one.isfile()} == {"srv/said", "srv/more"}
    assert more[-1]["srv/said"].size == len("plain\n\n7:8\n") + 32, "ENV, WORKDIR and owners came along"


def test_equal_twice_and_of_the_context_only_what_is_copied_counts(workspace: Path) -> None:
    first = kbuild(workspace, "run", "small.yaml", "built", "--no-publish")
    assert first["built"] >= 1
    (workspace / "docker/README").write_text(f"{uuid.uuid4()}\n")  # the store outlives the test
    (workspace / "docker/src/word.bak").write_text("ignored\n")
    (workspace / "docker/ignored/new").write_text("not named\n")
    again = kbuild(workspace, "run", "small.yaml", "built", "--no-publish")
    assert again["built"] == 0
    kbuild(workspace, "verify", "small.yaml", "built")
    (workspace / "docker/src/word").write_text(f"{uuid.uuid4()}\n")
    assert kbuild(workspace, "run", "small.yaml", "built", "--no-publish")["built"] == 1
    dockerfile = workspace / "docker/Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("COPY src/word", "COPY README"))
    assert kbuild(workspace, "run", "small.yaml", "built", "--no-publish")["built"] == 1
    (workspace / "docker/README").write_text("now it is read\n")
    assert kbuild(workspace, "run", "small.yaml", "built", "--no-publish")["built"] == 1


def test_what_nobody_provides_is_refused_with_the_line_of_the_dockerfile(workspace: Path) -> None:
    dockerfile = workspace / "docker/Dockerfile"
    dockerfile.write_text("FROM busybox\nCOPY --from=bussybox /a /b\n")
    failed = kbuild(workspace, "run", "small.yaml", "built", "--no-publish", code=2)
    assert failed["failed"]["built"]["reason"] == "dockerfile-image"
    assert "docker/Dockerfile:2:1" in failed["said"] and "did you mean 'busybox'" in failed["said"]
    dockerfile.write_text("FROM busybox\nRUN cat /nothing\n")
    failed = kbuild(workspace, "run", "small.yaml", "built", "--no-publish", code=1)
    assert "can't open '/nothing'" in failed["said"]


def test_a_step_that_the_kernel_did_not_let_begin_is_tried_again(workspace: Path) -> None:
    busy = "sealing memfd copy: Device or resource busy"
    (workspace / "docker/Dockerfile").write_text(f"FROM busybox\nRUN echo '{busy}' >&2 && false\n")
    failed = kbuild(workspace, "run", "small.yaml", "built", "--no-publish", code=1)
    assert failed["said"].count(f"Error: building at STEP \"RUN echo '{busy}'") >= 3
