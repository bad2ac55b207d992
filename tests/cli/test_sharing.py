"""Two machines and one registry: the second does no work, and nothing that is amiss there hurts it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from cli_workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
from debian_registry import started
from peers import peer

ALL, IMAGE = 5, 7  # with the tools tree of the image kind
NUMBERS = count()
HTPASSWD = "user:$2a$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"  # open sesame


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("registry")
    with started(folder) as (host, _):
        yield host, folder / "data/docker/registry/v2"


@pytest.fixture
def second(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same workspace under another path, with an empty cache."""
    folder = tmp_path_factory.mktemp("another machine") / "work"
    shutil.copytree(workspace.folder, folder, ignore=shutil.ignore_patterns("cache", "dist"))
    other = object.__new__(Workspace)
    other.folder = folder
    return other


def bytes_of(workspace: Workspace) -> int:
    return sum(
        file.stat().st_size for file in (workspace.folder / "cache/v1/blobs").rglob("*") if file.is_file()
    )


def test_the_second_machine_does_no_work_and_moves_only_what_is_wanted(
    workspace: Workspace, second: Workspace, registry: tuple[str, Path]
) -> None:
    where = f"{registry[0]}/n{next(NUMBERS)}"
    assert workspace.run("--cache-to", where)["built"] == ALL
    planned = second.kbuild("plan", "small.yaml", "--cache-from", where)[0]
    assert planned.count("hit (registry)") == ALL
    found = second.run("--cache-from", where)
    assert (found["built"], found["hits"]) == (0, ALL) and bytes_of(second) == 0
    again = second.run("--cache-from", where, "-o", "both=both.txt")
    assert again["built"] == 0 and (second.folder / "both.txt").read_text() == "one\nhello\n"
    assert bytes_of(second) == len("one\nhello\n")
    second.edit("two")
    assert second.run("--cache-from", where, "-o", "both=both.txt")["built"] == 3
    assert (second.folder / "both.txt").read_text() == "two\nhello\n"


def test_chunked_layers_come_with_what_leads_into_them(
    workspace: Workspace, second: Workspace, registry: tuple[str, Path]
) -> None:
    """zstd:chunked is a transport like any other: shared, and published again without being made again."""
    where = f"{registry[0]}/n{next(NUMBERS)}"
    for one in (workspace, second):
        text = (one.folder / "image.yaml").read_text()
        (one.folder / "image.yaml").write_text(text.replace("site]}", 'site], compression: "zstd:chunked"}'))
    rows = [
        json.loads(one.kbuild("run", "image.yaml", "--json", "--push", f"{where}:{tag}", *words)[0])
        for one, tag, words in (
            (workspace, "a", ("--cache-to", where)),
            (second, "b", ("--cache-from", where)),
        )
    ]
    assert rows[1]["built"] == 0 and rows[0]["published"][0]["digest"] == rows[1]["published"][0]["digest"]
    url = f"http://{registry[0]}/v2/{where.partition('/')[2]}/manifests/b"
    asked = Request(url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    with urlopen(asked) as reply:
        layers = json.load(reply)["layers"]
    assert all("io.github.containers.zstd-chunked.manifest-checksum" in one["annotations"] for one in layers)


def test_publishing_from_the_cache_is_a_mount(
    workspace: Workspace, second: Workspace, registry: tuple[str, Path]
) -> None:
    cache, os_ = f"{registry[0]}/n{next(NUMBERS)}", f"{registry[0]}/n{next(NUMBERS)}"
    one = json.loads(workspace.kbuild("run", "image.yaml", "--json", "--cache-to", cache, "--push", os_)[0])
    assert one["built"] == IMAGE
    shutil.copy(workspace.folder / "image.lock", second.folder)
    again = json.loads(
        second.kbuild(
            "run", "image.yaml", "--json", "--cache-from", cache, "--push", f"{os_}-2", "--events", "e"
        )[0]
    )
    assert again["built"] == 0 and again["published"][0]["digest"] == one["published"][0]["digest"]
    assert again["published"][0]["uploaded"] < 5000, (
        "the configuration and the manifest; the layers were mounted"
    )
    assert bytes_of(second) < 100_000


def test_results_of_before_are_shared_too_and_settings_say_where(
    workspace: Workspace, second: Workspace, registry: tuple[str, Path]
) -> None:
    where = f"{registry[0]}/n{next(NUMBERS)}"
    workspace.run()
    for one, more in ((workspace, f", to: {where}"), (second, "")):
        (one.folder / "BUILD.yaml").write_text(f"version: 1\ncache: {{from: [{where}]{more}}}\n")
    assert workspace.run()["built"] == 0
    assert second.run()["hits"] == ALL


def test_a_dead_cache_costs_a_warning(workspace: Workspace) -> None:
    out, err = workspace.kbuild(
        "run", "small.yaml", "--cache-from=127.0.0.1:1/a", "--cache-to=127.0.0.1:1/a", "--json"
    )
    assert json.loads(out)["built"] == ALL
    assert err.count("127.0.0.1:1") == 1


def test_what_is_poisoned_or_gone_in_the_registry_is_built_again(
    workspace: Workspace, second: Workspace, registry: tuple[str, Path]
) -> None:
    host, data = registry
    where = f"{host}/n{next(NUMBERS)}"
    workspace.run("--cache-to", where)
    made = json.loads(workspace.kbuild("run", "small.yaml", "--json")[0])["nodes"]
    damaged = (
        data / "blobs/sha256" / made["both"]["outputs"]["o"][7:9] / made["both"]["outputs"]["o"][7:] / "data"
    )
    damaged.write_bytes(b"evil words\n")
    gone = made["said"]["outputs"]["o"]
    shutil.rmtree(data / "blobs/sha256" / gone[7:9] / gone[7:])
    out, _ = second.kbuild("run", "small.yaml", "--json", "--cache-from", where, "-o", "both=both.txt")
    assert (second.folder / "both.txt").read_text() == "one\nhello\n"
    assert json.loads(out)["nodes"]["both"] == made["both"], "the same digests as before"


def test_no_secret_reaches_what_is_shared_or_told(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Planted: a login that is used, a key that signs, and variables of the environment that look like secrets."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    key = folder / "key.pem"
    subprocess.run([peer("openssl"), "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    with started(folder, more=f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}") as (host, _):
        env = {
            "KBUILD_REGISTRY_HOST": host, "KBUILD_REGISTRY_USER": "user", "KBUILD_REGISTRY_PASSWORD": "open sesame",
            "API_TOKEN": "sk-planted-token", "GITHUB_TOKEN": "ghp-planted-token",
        }  # fmt: skip
        told = workspace.kbuild(
            "run", "image.yaml", "--cache-to", f"{host}/c", "--cache-from", f"{host}/c", "--push", f"{host}/os",
            "--cache-sign", str(key), "--json", "--events", "events", "--trace", "trace", env=env,
        )  # fmt: skip
    planted = ["open sesame", "dXNlcjpvcGVuIHNlc2FtZQ==", "planted-token", key.read_text().split("\n")[1]]
    everything = [text.encode() for text in told]
    for place in (workspace.folder, folder / "data"):
        everything += [file.read_bytes() for file in place.rglob("*") if file.is_file()]
    assert sum(b"dev.kairosbuild.record.signature" in data for data in everything) >= IMAGE
    assert [secret for secret in planted if any(secret.encode() in data for data in everything)] == []


def test_only_signed_results_count_where_that_is_asked(
    workspace: Workspace,
    second: Workspace,
    registry: tuple[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    where, folder = f"{registry[0]}/n{next(NUMBERS)}", tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        subprocess.run([peer("openssl"), "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run([peer("openssl"), "pkey", "-in", private, "-pubout", "-out", public], check=True)
    workspace.run("--cache-to", where, "--cache-sign", str(folder / "ours.pem"))
    planned = second.kbuild(
        "plan", "small.yaml", "--cache-from", where, "--cache-trust", f"{folder}/theirs.pub"
    )[0]
    assert "hit" not in planned
    settings = f"version: 1\ncache: {{from: [{where}], trust: [ours.pub]}}\n"
    (second.folder / "BUILD.yaml").write_text(settings)
    shutil.copy(folder / "ours.pub", second.folder)
    assert second.run()["hits"] == ALL
