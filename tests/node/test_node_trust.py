"""Signed or not; and what is given up at a reset."""

import base64
import json
import subprocess
from pathlib import Path

import pytest
from machine_registry import MachineRegistry
from peers import peer

from kairosbuild.node import places
from kairosbuild.node.grub import Grub
from kairosbuild.node.http import Access
from kairosbuild.node.offer import find
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository
from kairosbuild.node.trust import verifier


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    openssl, private = peer("openssl"), tmp_path / "key"
    curve = ["-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(
        [openssl, "genpkey", "-algorithm", "EC", *curve, "-out", private], check=True, capture_output=True
    )
    public = subprocess.run(
        [openssl, "pkey", "-in", private, "-pubout"], check=True, capture_output=True, text=True
    )
    return private, public.stdout


def sign(registry: MachineRegistry, digest: str, private: Path, about: str = "") -> None:
    image = {"docker-manifest-digest": about or digest}
    critical = {
        "identity": {"docker-reference": ""},
        "image": image,
        "type": "cosign container image signature",
    }
    payload = json.dumps({"critical": critical, "optional": None}).encode()
    command = ["openssl", "dgst", "-sha256", "-sign", str(private)]
    signature = subprocess.run(command, input=payload, check=True, capture_output=True).stdout
    layer = registry.blob(payload, "application/vnd.dev.cosign.simplesigning.v1+json")
    layer["annotations"] = {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()}
    document = {"config": registry.blob(b"{}"), "layers": [layer]}
    registry.manifest(f"{digest.replace(':', '-')}.sig", document)


def bundled(registry: MachineRegistry, digest: str, private: Path, **changes: str) -> None:
    """What the builder publishes as a bundle; `changes` of the statement before it is signed."""
    from kairosbuild.core.canonical import loads
    from kairosbuild.keys.keys import signer
    from kairosbuild.proof import statement

    key = signer(str(private))
    said = statement.statement(changes.get("about", digest), "", changes.get("predicate", statement.SIGN), {})
    made = loads(statement.bundle(statement.envelope(said, key), key.public))
    made["dsseEnvelope"]["payloadType"] = changes.get("kind", statement.IN_TOTO)
    layer = registry.blob(json.dumps(made).encode(), statement.BUNDLE)
    referrer = {"artifactType": statement.BUNDLE, "config": registry.blob(b"{}"), "layers": [layer]}
    referrer["subject"] = {"mediaType": "", "digest": digest, "size": 2}
    tag = digest.replace(":", "-")
    found = registry.manifest(f"{tag}.bundle-1", referrer)
    if registry.fallback:
        listed = {"digest": found, "artifactType": statement.BUNDLE}
        registry.manifest(tag, {"manifests": [listed]})


def judged(registry: MachineRegistry, *trusted: str) -> str:
    reference = parse(f"{registry.host}/os:a")
    try:
        find(
            reference, Repository(reference, Access(), sleep=lambda s: None), "linux/amd64", verifier(trusted)
        )
    except Problem as problem:
        return problem.reason
    return "taken"


def test_only_what_a_trusted_key_signed_is_taken(registry, keys, tmp_path):
    private, public = keys
    _, boot = registry.publish("a", b"kernel", b"config", {})
    assert judged(registry) == "taken"
    assert judged(registry, public) == "not-signed"
    sign(registry, boot, private)
    assert judged(registry, public) == "taken"


def test_a_signature_of_another_key_or_about_another_image_is_none(registry, keys, tmp_path):
    private, public = keys
    _, boot = registry.publish("a", b"kernel", b"config", {})
    other = tmp_path / "other"
    other.mkdir()
    command = [
        "openssl",
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        other / "key",
    ]
    subprocess.run(command, check=True, capture_output=True)
    sign(registry, boot, other / "key")
    assert judged(registry, public) == "not-signed"
    sign(registry, boot, private, about="sha256:" + "0" * 64)
    assert judged(registry, public) == "not-signed"


@pytest.mark.parametrize("fallback", [True, False])
def test_a_bundle_of_a_trusted_key_is_a_signature_too(registry, keys, fallback):
    registry.fallback = fallback
    _, boot = registry.publish("a", b"kernel", b"config", {})
    bundled(registry, boot, keys[0])
    assert judged(registry, keys[1]) == "taken"


@pytest.mark.parametrize(
    "changes",
    [
        {"about": "sha256:" + "0" * 64},
        {"predicate": "https://spdx.dev/Document"},
        {"kind": "application/json"},
    ],
)
def test_a_bundle_that_says_something_else_is_none(registry, keys, changes):
    _, boot = registry.publish("a", b"kernel", b"config", {})
    bundled(registry, boot, keys[0], **changes)
    assert judged(registry, keys[1]) == "not-signed"


def test_what_is_no_bundle_is_none(registry, keys):
    _, boot = registry.publish("a", b"kernel", b"config", {})
    layer = registry.blob(b'{"dsseEnvelope": {"payload": 7}}')
    registry.manifest("other", {"artifactType": "x", "config": registry.blob(b"{}"), "layers": [layer]})
    document = json.loads(registry.manifests["other"])
    document["artifactType"] = "application/vnd.dev.sigstore.bundle.v0.3+json"
    found = registry.manifest("broken", document)
    listed = [{"digest": found, "artifactType": document["artifactType"]}]
    registry.manifest(boot.replace(":", "-"), {"manifests": listed})
    assert judged(registry, keys[1]) == "not-signed"


def test_a_reset_is_noted_for_the_next_start(tmp_path):
    assert places.reset(["home"], tmp_path) == ["etc", "var", "root", "opt", "srv"]
    assert (tmp_path / "reset").read_text().split() == ["etc", "var", "root", "opt", "srv"]
    with pytest.raises(Problem, match="did you mean 'home'"):
        places.reset(["hom"], tmp_path)
    with pytest.raises(Problem) as caught:
        places.reset([], tmp_path / "nothing")
    assert caught.value.reason == "nothing-kept"


def test_an_entry_is_started_once(tmp_path):
    nothing = Grub(tmp_path)
    with pytest.raises(Problem) as caught:
        places.start_once("recovery", nothing, tmp_path / "variables/one")
    assert caught.value.reason == "no-efi"
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables/other").touch()
    places.start_once("recovery", nothing, tmp_path / "variables/one")
    data = (tmp_path / "variables/one").read_bytes()
    assert data[4:].decode("utf-16-le") == "recovery.efi\0"
