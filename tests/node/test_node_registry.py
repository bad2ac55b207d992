"""The machine's registry client: tokens, redirects, resumption, and what it refuses."""

import json

import pytest
from machine_registry import MachineRegistry, digest_of, serving

from kairosbuild.node.http import Access, login, logins_in
from kairosbuild.node.offer import BOOT
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Blob, Repository


def repository(registry: MachineRegistry, **access) -> Repository:
    return Repository(parse(f"{registry.host}/os:a"), Access(**access), sleep=lambda seconds: None)


def blob_of(data: bytes) -> Blob:
    return Blob(digest_of(data), len(data))


DATA = bytes(range(256)) * 4000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:5000/os", "localhost:5000/os:latest"),
        ("registry.example.com/os/debian:13", "registry.example.com/os/debian:13"),
        (f"h.example/x:1@sha256:{'a' * 64}", f"h.example/x@sha256:{'a' * 64}"),
    ],
)
def test_references(text, shown):
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "debian", "h.example/X", "h.example/x@sha256:1", "http://h.example/x", "a b"]
)
def test_no_references(text):
    with pytest.raises(Problem) as caught:
        parse(text)
    assert caught.value.reason == "bad-reference"


def test_a_blob_that_breaks_off_is_resumed(registry, tmp_path):
    blob = registry.blob(DATA)
    registry.cut = [1000, 2000, 3000]
    here = repository(registry)
    here.fetch(blob_of(DATA), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA
    assert registry.sent == here.fetched == blob["size"]


def test_a_registry_without_ranges_starts_again(registry, tmp_path):
    registry.blob(DATA)
    registry.ranges = False
    registry.cut = [1000]
    repository(registry).fetch(blob_of(DATA), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == DATA


def test_what_was_begun_with_other_bytes_is_refused_and_gone(registry, tmp_path):
    registry.blob(DATA)
    (tmp_path / "blob").write_bytes(b"x" * 1000)
    with pytest.raises(Problem) as caught:
        repository(registry).fetch(blob_of(DATA), tmp_path / "blob")
    assert caught.value.reason == "registry-lied"
    assert not (tmp_path / "blob").exists()


def test_a_body_that_does_not_end_is_refused(registry, tmp_path):
    registry.blob(DATA)
    registry.change = lambda path, data: data + b"more"
    with pytest.raises(Problem) as caught:
        repository(registry).fetch(blob_of(DATA), tmp_path / "blob")
    assert caught.value.reason == "registry-lied"


def test_tokens_and_logins(registry, tmp_path):
    registry.token, registry.login = "secret", login("me", "word")
    registry.manifest("a", {"config": registry.blob(b"{}"), "layers": []})
    with pytest.raises(Problem) as caught:
        repository(registry).manifest("a")
    assert caught.value.reason == "registry-denied"
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {registry.host: {"auth": registry.login}}}))
    assert repository(registry, logins=logins_in(file)).manifest("a").layers == ()


def test_a_redirect_gets_no_credentials(registry, tmp_path):
    registry.token = "secret"
    registry.blob(DATA)
    with serving(MachineRegistry()) as other:
        other.blob(DATA)
        registry.elsewhere = f"http://{other.host}"
        repository(registry).fetch(blob_of(DATA), tmp_path / "blob")
        assert [authorization for _, authorization in other.seen] == [""]
    assert (tmp_path / "blob").read_bytes() == DATA


def test_a_redirect_to_a_file_is_refused(registry, tmp_path):
    registry.blob(DATA)
    registry.elsewhere = "file:///etc"
    with pytest.raises(Problem):
        repository(registry).fetch(blob_of(DATA), tmp_path / "blob")


def test_a_host_that_is_not_there_is_said_to_be():
    with pytest.raises(Problem) as caught:
        Repository(parse("127.0.0.1:1/os"), Access(), sleep=lambda seconds: None).manifest("a")
    assert caught.value.reason == "registry-unreachable"


def test_a_host_without_tls_is_said_to_be_one(registry):
    port = registry.host.rpartition(":")[2]
    with pytest.raises(Problem) as caught:
        Repository(parse(f"127.1:{port}/os"), Access(), sleep=lambda seconds: None).manifest("a")
    assert (caught.value.reason, "--plain-http" in str(caught.value)) == ("registry-tls", True)


def test_an_index_is_followed_to_the_platform(registry):
    one = registry.manifest("one", {"config": registry.blob(b"1"), "layers": []})
    platform = {"os": "linux", "architecture": "amd64"}
    registry.manifest("all", {"manifests": [{"digest": one, "platform": platform}]})
    assert repository(registry).manifest("all", "linux/amd64").digest == one
    with pytest.raises(Problem) as caught:
        repository(registry).manifest("all", "linux/arm64")
    assert caught.value.reason == "no-such-platform"


@pytest.mark.parametrize("fallback", [True, False])
def test_a_boot_artifact_is_found_by_the_fallback_tag_or_among_the_tags(registry, fallback):
    registry.fallback = fallback
    image, boot = registry.publish("a", b"kernel", b"config", {})
    registry.publish("b", b"kernel", b"other", {})
    assert repository(registry).referrers(image, BOOT, "a") == [boot]
    assert repository(registry).referrers(image, BOOT) == [boot]
