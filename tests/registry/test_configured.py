"""containers-registries.conf(5): which file counts, which table is meant, and in which order places are asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_server import FaultServer
from test_publish import Build, opened

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Events
from kairosbuild.registry.configured import Configured, load
from kairosbuild.registry.pull import pull
from kairosbuild.registry.reference import parse
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.registry.target import Target
from kairosbuild.store.cas import Cas

DIGEST = "sha256:" + "a" * 64
CONF = """\
unqualified-search-registries = ["docker.io"]
[aliases]
"debian" = "docker.io/library/debian"

[[registry]]
prefix = "quay.io/fedora"
location = "inside.example:5000/mirrored/fedora"
insecure = true
[[registry.mirror]]
location = "near.example/fedora"
[[registry.mirror]]
location = "cache.example:5000/q"
insecure = true
pull-from-mirror = "digest-only"

[[registry]]
location = "quay.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "far.example"

[[registry]]
prefix = "*.blocked.example"
blocked = true

[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "tame.example/wild"
pull-from-mirror = "tag-only"

[[registry]]
location = "docker.io/library"
[[registry.mirror]]
location = "hub.example"
"""


def configured(folder: Path, text: str = CONF) -> Configured:
    (folder / "own.conf").write_text(text)
    return load({"CONTAINERS_REGISTRIES_CONF": str(folder / "own.conf")})


ROWS = [
    (
        "quay.io/fedora/fedora:43",
        ["near.example/fedora/fedora:43", "!inside.example:5000/mirrored/fedora/fedora:43"],
    ),
    (
        f"quay.io/fedora/fedora@{DIGEST}",
        [
            f"near.example/fedora/fedora@{DIGEST}",
            f"!cache.example:5000/q/fedora@{DIGEST}",
            f"!inside.example:5000/mirrored/fedora/fedora@{DIGEST}",
        ],
    ),
    ("quay.io/fedora-else/x:1", ["quay.io/fedora-else/x:1"]),
    (f"quay.io/other/x@{DIGEST}", [f"far.example/other/x@{DIGEST}", f"quay.io/other/x@{DIGEST}"]),
    ("a.wild.example/x:1", ["tame.example/wild/x:1", "a.wild.example/x:1"]),
    (f"a.wild.example/x@{DIGEST}", [f"a.wild.example/x@{DIGEST}"]),
    ("wild.example/x:1", ["wild.example/x:1"]),
    ("docker.io/debian:trixie", ["hub.example/debian:trixie", "docker.io/library/debian:trixie"]),
    ("elsewhere.example/x", ["elsewhere.example/x"]),
]


@pytest.mark.parametrize(("reference", "expected"), ROWS, ids=[reference for reference, _ in ROWS])
def test_where_a_reference_is_looked_for(tmp_path: Path, reference: str, expected: list[str]) -> None:
    found = configured(tmp_path).endpoints(parse(reference))
    assert ["!" * one.insecure + str(one.reference) for one in found] == expected


def test_what_is_blocked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        configured(tmp_path).endpoints(parse("a.b.blocked.example/x"))
    assert caught.value.reason == "registry-blocked" and "own.conf" in caught.value.hint
    with pytest.raises(HostError):
        Registries(configured=lambda: configured(tmp_path)).open("a.blocked.example/x")


def test_short_names_alone_are_not_read_as_toml(tmp_path: Path) -> None:
    text = '[aliases]\n"registry" = "docker.io/library/registry"\nthis line is no TOML\n'
    assert configured(tmp_path, text) == Configured()
    with pytest.raises(InputError):
        configured(tmp_path, text + '["registry"]\n')


@pytest.mark.parametrize(
    "text",
    [
        "[[registry]",
        "[registries.search]\nregistries = ['x']",
        "[[registry]]\nblocked = true",
        "[[registry]]\nprefix = 'a.example'",
        "[[registry]]\nlocation = 1",
        "[[registry]]\nlocation = 'https://a.example'",
        "[[registry]]\nlocation = 'a.example'\ninsecure = 'yes'",
        "[[registry]]\nlocation = 'a.example'\nmirror = ['b.example']",
        "[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]\ninsecure = true",
        "[[registry]]\nlocation = 'a.example'\n[[registry.mirror]]\nlocation = 'b.example'\npull-from-mirror = 'some'",
        "registry = 1",
    ],
)
def test_a_file_that_cannot_be_meant_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as caught:
        configured(tmp_path, text)
    assert caught.value.reason == "registries-conf" and "own.conf" in caught.value.message


def table(prefix: str, location: str) -> str:
    return f"[[registry]]\nprefix = '{prefix}'\nlocation = '{location}'\n"


def test_whose_file_counts(tmp_path: Path) -> None:
    etc, home = tmp_path / "etc", tmp_path / "home"
    (etc / "registries.conf.d").mkdir(parents=True)
    (home / ".config/containers/registries.conf.d").mkdir(parents=True)
    (etc / "registries.conf").write_text(
        table("a.example", "etc.example") + table("b.example", "etc.example")
    )
    (etc / "registries.conf.d/10.conf").write_text(table("b.example", "ten.example"))
    (etc / "registries.conf.d/20.conf").write_text(table("b.example", "twenty.example"))
    (etc / "registries.conf.d/30.off").write_text(table("b.example", "off.example"))
    environ = {"HOME": str(home)}

    def location(prefix: str) -> list[str]:
        return [t.location for t in load(environ, etc).tables if t.prefix == prefix]

    assert (location("a.example"), location("b.example")) == (["etc.example"], ["twenty.example"])
    (home / ".config/containers/registries.conf.d/x.conf").write_text(table("b.example", "mine.example"))
    assert (location("a.example"), location("b.example")) == (["etc.example"], ["mine.example"])
    (home / ".config/containers/registries.conf").write_text(table("c.example", "own.example"))
    assert location("a.example") == [] and location("c.example") == ["own.example"]
    assert load({"HOME": str(tmp_path / "nobody")}, tmp_path / "nothing").tables == ()


def test_the_first_place_that_serves_it_is_taken(tmp_path: Path, faults: FaultServer) -> None:
    data = b'{"schemaVersion": 2}'
    blob = of_bytes(data)
    for version in (blob.digest, "43"):
        faults.manifests["cached/fedora", version] = "application/vnd.oci.image.manifest.v1+json", data
    text = (
        "[[registry]]\nprefix = 'quay.example/fedora'\nlocation = 'quay.example/fedora'\n"
        "[[registry.mirror]]\nlocation = '127.0.0.1:1/down'\n"
        f"[[registry.mirror]]\nlocation = '{faults.host}/absent'\n"
        f"[[registry.mirror]]\nlocation = '{faults.host}/cached'\n"
    )
    limits = Limits(connect=2, read=5, attempts=1, pause=0.001)
    registries = Registries(limits=limits, configured=lambda: configured(tmp_path, text))
    into = tmp_path / "file"
    assert registries.fetch("oci://quay.example/fedora/fedora:43", into) == blob
    assert into.read_bytes() == data
    uri = f"oci://quay.example/fedora/fedora@{blob.digest}"
    assert registries.fetch(uri, into, digest=blob.digest, size=blob.size) == blob


def test_a_mirror_that_lies_is_passed_by_and_the_last_place_is_the_one_told(
    tmp_path: Path, faults: FaultServer
) -> None:
    right, wrong = b'{"schemaVersion": 2}', b'{"schemaVersion": 3}'
    blob = of_bytes(right)
    kind = "application/vnd.oci.image.manifest.v1+json"
    faults.manifests["lies/x", blob.digest] = kind, wrong
    text = (
        f"[[registry]]\nprefix = 'quay.example'\nlocation = '{faults.host}/true'\n"
        f"[[registry.mirror]]\nlocation = '{faults.host}/lies'\n"
    )
    registries = Registries(limits=Limits(attempts=1), configured=lambda: configured(tmp_path, text))
    with pytest.raises(HostError) as caught:
        registries.fetch(f"oci://quay.example/x@{blob.digest}", tmp_path / "f", digest=blob.digest)
    assert "/true/x" in caught.value.message
    faults.manifests["true/x", blob.digest] = kind, right
    assert registries.fetch(f"oci://quay.example/x@{blob.digest}", tmp_path / "f", digest=blob.digest) == blob


def test_an_artifact_is_pulled_from_a_mirror(tmp_path: Path, faults: FaultServer, cas: Cas) -> None:
    build = Build(cas)
    build.publish(opened(faults.host, "cached/os"), build.image(), build.disk())
    text = (
        "[[registry]]\nprefix = 'quay.example'\nlocation = '127.0.0.1:1'\n"
        "[[registry.mirror]]\nlocation = '127.0.0.1:1/down'\n"
        f"[[registry.mirror]]\nlocation = '{faults.host}/cached'\n"
    )
    limits = Limits(connect=2, read=5, attempts=1, pause=0.001)
    registries = Registries(limits=limits, configured=lambda: configured(tmp_path, text))

    def get(target: Target, version: str) -> tuple[Path, ...]:
        return pull(target, version, tmp_path / "into", Events())

    assert [file.name for file in registries.first("quay.example/os:latest-disk", get)] == ["os.raw"]
    with pytest.raises(HostError) as caught:
        registries.first("quay.example/os:absent", get)
    assert "127.0.0.1:1" in caught.value.message, "the last place is the one told"
