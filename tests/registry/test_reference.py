"""References: what is one, what is none, and what the error says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairosbuild.core.errors import InputError
from kairosbuild.registry.reference import Reference, is_loopback, parse

DIGEST = "sha256:" + "ab" * 32

GOOD = [
    ("quay.io/fedora/fedora:43", Reference("quay.io", "fedora/fedora", "43")),
    ("oci://quay.io/a/b__c/d-e.f:x", Reference("quay.io", "a/b__c/d-e.f", "x")),
    ("localhost/a", Reference("localhost", "a")),
    ("localhost:5000/a/b", Reference("localhost:5000", "a/b")),
    ("[::1]:5000/a:Latest_1.0-x", Reference("[::1]:5000", "a", "Latest_1.0-x")),
    (f"r.example.com/a@{DIGEST}", Reference("r.example.com", "a", "", DIGEST)),
    (f"r.example.com:8443/a:1@{DIGEST}", Reference("r.example.com:8443", "a", "1", DIGEST)),
    ("docker.io/debian:trixie", Reference("docker.io", "library/debian", "trixie")),
    ("docker.io/kairos/os", Reference("docker.io", "kairos/os")),
]
BAD = [
    "", "debian", "debian:trixie", "library/debian", "quay.io/", "quay.io/A", "quay.io/a//b",
    "quay.io/a/../b",
    "quay.io/a:", "quay.io/a:b:c", "quay.io/a:-x", "quay.io/a:" + "x" * 129, "quay.io/a@sha256:12",
    "quay.io/a@", "quay.io:99999/a", "quay.io:x/a", "user@quay.io/a", "https://quay.io/a", "quay.io/a b",
    "quay.io/" + "a" * 300, "quay.io/a?x=1", "quay.io/a#b", "-quay.io/a",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), GOOD)
def test_reads(text: str, expected: Reference) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize("text", BAD)
def test_refuses(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.reason == "bad-reference"
    assert repr(text) in str(caught.value)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text(alphabet="aA0.-_/:@ []%?#\n\x00é", max_size=40))
def test_reads_or_refuses_and_what_it_reads_reads_again(text: str) -> None:
    try:
        found = parse(text)
    except InputError:
        return
    assert parse(str(found)) == found
    assert not set(str(found)) & set(" \n\x00%?#")


@pytest.mark.parametrize("host", ["localhost", "localhost:5000", "127.0.0.1", "127.8.8.8:1", "[::1]:5000"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "localhost.example.com:1", "127.0.0.1.x.com"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_docker_hub_answers_elsewhere() -> None:
    assert parse("docker.io/debian").endpoint == "registry-1.docker.io"
    assert parse("quay.io/a").endpoint == "quay.io"
