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
