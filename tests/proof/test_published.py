"""What a run attaches to what it publishes, read back by others; and that it says no secret."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_workspace import Workspace
from peers import peer
from proof_samples import PASSWORD, new_key, pem

from kairosbuild.core.digest import of_bytes
from kairosbuild.keys import keys
from kairosbuild.proof import signing, statement
from kairosbuild.registry import referrers
from kairosbuild.registry.registries import Registries

SPDX, IN_TOTO = "application/spdx+json", "application/vnd.in-toto+json"


def push(
    workspace: Workspace, place: str, *words: str, env: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    out, _ = workspace.kbuild("run", "image.yaml", "--push", place, "--json", *words, env=env)
    published: list[dict[str, Any]] = json.loads(out)["published"]
    return published


def attached(place: str, digest: str, kind: str) -> list[Any]:
    target, _ = Registries().open(place)
    found = [referrers.files(target, one) for one in referrers.listed(target, digest, kind)]
    return [json.loads(data) for files in found for _, data in files]


def test_inventory_provenance_and_lock_hang_on_the_image(workspace: Workspace, place: str) -> None:
    (row,) = push(workspace, place)
    (sbom,) = attached(place, row["digest"], SPDX)
    assert sbom["documentNamespace"].endswith(row["digest"])
    assert [one["name"] for one in sbom["packages"][:3]] == ["small:os", "base", "site"]
    (said,) = attached(place, row["digest"], IN_TOTO)
    assert said["subject"] == [{"digest": {"sha256": row["digest"][7:]}, "name": "small:os"}]
    definition = said["predicate"]["buildDefinition"]
    outcome = json.loads(workspace.kbuild("run", "image.yaml", "--json", "--no-publish")[0])
    nodes = definition["internalParameters"]["nodes"]
    assert set(nodes) == {"base", "site", "os", "tools:image"}  # and nothing that went not into it
    assert {name: node["key"] for name, node in nodes.items()} == {
        n: outcome["nodes"][n]["key"] for n in nodes
    }
    dependencies = {
        one["name"]: one["digest"]["sha256"] for one in definition["resolvedDependencies"] if "name" in one
    }
    assert dependencies["image.yaml"] == of_bytes((workspace.folder / "image.yaml").read_bytes()).hex
    assert {"image.lock", "site.source", "base.tarball"} <= set(dependencies)
    assert any(one.get("annotations", {}).get("tool") for one in definition["resolvedDependencies"])
    lock = (workspace.folder / "image.lock").read_bytes()
    assert attached(place, row["digest"], "application/vnd.kairosbuild.lock.v1+json") == [json.loads(lock)]


def test_publishing_again_attaches_nothing(workspace: Workspace, place: str) -> None:
    key = workspace.folder.parent / "key.pem"
    key.write_bytes(pem(new_key("ecdsa")))
    push(workspace, place, "--sign", str(key))
    target, _ = Registries().open(place)
    before = {tag: target.head_manifest(tag) for tag in target.tags()}
    (row,) = push(workspace, place, "--sign", str(key))
    assert row["skipped"]
    other = Workspace(workspace.folder.parent / "elsewhere")  # another machine: another store, no note
    (workspace.folder / "image.lock").rename(other.folder / "image.lock")
    push(other, place, "--sign", str(key), "--cache-dir", str(other.folder / "cache"))
    assert {tag: target.head_manifest(tag) for tag in target.tags()} == before


@pytest.mark.parametrize("signed", [False, True])
def test_a_recipe_in_other_words_says_nothing_new(workspace: Workspace, place: str, signed: bool) -> None:
    """An edit that changes no digest adds no provenance and no lock; one that changes a node's key adds one."""
    key = workspace.folder.parent / "key.pem"
    key.write_bytes(pem(new_key("ecdsa")))
    words = ["--sign", str(key)] if signed else []
    (row,) = push(workspace, place, *words)
    target, _ = Registries().open(place)
    before = referrers.listed(target, row["digest"])
    tags = {tag: target.head_manifest(tag) for tag in target.tags()}
    recipe = workspace.folder / "image.yaml"
    recipe.write_text("# other words\n" + recipe.read_text().replace("hello", "goodbye"))
    lock = workspace.folder / "image.lock"
    lock.write_text(json.dumps(json.loads(lock.read_text()), indent=1) + "\n")
    (again,) = push(workspace, place, *words)
    assert again["digest"] == row["digest"] and again["skipped"]
    assert referrers.listed(target, row["digest"]) == before
    assert {tag: target.head_manifest(tag) for tag in target.tags()} == tags
    assert push(workspace, place, *words)[0]["skipped"]
    assert {tag: target.head_manifest(tag) for tag in target.tags()} == tags


def test_what_was_declared_is_attached(workspace: Workspace, place: str) -> None:
    recipe = workspace.folder / "image.yaml"
    recipe.write_text(recipe.read_text().replace("[os]}", "[os], sbom: [cyclonedx], provenance: false}"))
    (row,) = push(workspace, place)
    target, _ = Registries().open(place)
    kinds = [one.artifact_type for one in referrers.listed(target, row["digest"])]
    assert kinds == ["application/vnd.cyclonedx+json"]
    recipe.write_text(recipe.read_text().replace("[cyclonedx]", "[]"))
    workspace.edit("two")
    (row,) = push(workspace, place)
    assert referrers.listed(target, row["digest"]) == ()


@pytest.mark.parametrize("suite", ["trixie", "sid"])
def test_cosign_and_oras_read_a_signed_publication(suite: str, workspace: Workspace, place: str) -> None:
    key = workspace.folder / "key.pem"
    key.write_bytes(pem(new_key("ecdsa")))
    recipe = workspace.folder / "image.yaml"
    recipe.write_text(recipe.read_text().replace("[os]}", "[os], sbom: [spdx, cyclonedx], sign: key.pem}"))
    (row,) = push(workspace, place)
    public = workspace.folder / "key.pub"
    public.write_bytes(keys.verifier(str(key)).pem())
    name = f"{place.replace('127.0.0.1', 'localhost')}@{row['digest']}"
    for words in (
        ["verify"],
        *(["verify-attestation", "--type", kind] for kind in ("slsaprovenance1", "spdxjson", "cyclonedx")),
    ):
        command = [
            peer("cosign", suite=suite),
            *words,
            "--key",
            str(public),
            "--insecure-ignore-tlog=true",
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (words, done.stderr)
    command = [
        peer("oras", suite=suite),
        "discover",
        "--plain-http",
        "--format",
        "json",
        f"{place}@{row['digest']}",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    kinds = [one["artifactType"] for one in found.get("manifests") or found["referrers"]]
    assert set(kinds) == {
        statement.BUNDLE, SPDX, "application/vnd.cyclonedx+json", IN_TOTO, "application/vnd.kairosbuild.lock.v1+json",
    }  # fmt: skip
    assert kinds.count(statement.BUNDLE) == 4


def test_the_documents_of_a_recipe_are_those_published(workspace: Workspace, place: str) -> None:
    push(workspace, place)
    for verb in (["sbom"], ["provenance"]):
        made = json.loads(workspace.kbuild(*verb, "image.yaml")[0])
        told = json.loads(workspace.kbuild(*verb, f"{place}:latest")[0])
        assert made == told.get("predicate", told)
    out, _ = workspace.kbuild("sbom", f"{place}:latest", "--format", "cyclonedx", "--json", code=2)
    assert "no cyclonedx attached" in out + _


def test_no_secret_is_told(workspace: Workspace, place: str, token: str, store: Path) -> None:
    """A key, its password and a PIN are used; then everything that was written or printed is searched."""
    folder = workspace.folder
    key = new_key("ecdsa")
    secrets = {
        "password": PASSWORD, "pin": os.environ["COSIGN_PKCS11_PIN"], "login": "hunter2hunter2",
        "key": pem(key).decode().splitlines()[1],
    }  # fmt: skip
    (folder.parent / "sealed.pem").write_bytes(pem(key, PASSWORD))
    env = {"COSIGN_PASSWORD": PASSWORD, "MY_KEY": pem(key).decode(), "HOME": str(folder.parent)}
    (folder.parent / ".docker").mkdir()
    login = {"auths": {place.partition("/")[0]: {"auth": "dXNlcjpodW50ZXIyaHVudGVyMg=="}}}
    (folder.parent / ".docker/config.json").write_text(json.dumps(login))
    said = ""
    for number, sign in enumerate(("env://MY_KEY", f"{folder.parent}/sealed.pem", token)):
        workspace.edit(f"text {number}")
        words = ["--events", "events.jsonl", "--trace", "trace.json", "--sign", sign]
        said += "".join(workspace.kbuild("run", "image.yaml", "--push", place, "--json", *words, env=env))
        said += (folder / "events.jsonl").read_text() + (folder / "trace.json").read_text()
    for sign in (f"{folder.parent}/sealed.pem", token):
        broken = {**env, "COSIGN_PASSWORD": "another secret", "COSIGN_PKCS11_PIN": "777777"}
        said += "".join(
            workspace.kbuild(
                "sign", f"{place}:latest", "--key", sign, "--json", env=broken, code=2 if "pem" in sign else 3
            )
        )
    secrets |= {"wrong password": "another secret", "wrong pin": "777777"}
    written = b"".join(f.read_bytes() for root in (folder, store) for f in root.rglob("*") if f.is_file())
    target, _ = Registries().open(place)
    written += b"".join(target.get_manifest(tag).data for tag in target.tags())
    for name, secret in secrets.items():
        assert secret not in said, name
        assert secret.encode() not in written, name
    digest = target.get_manifest("latest").blob.digest
    assert signing.verify(target, digest, keys.verifier(token))


def test_a_publication_differs_in_nothing_from_its_own_recipe(workspace: Workspace) -> None:
    """An image and what is published beside it, asked for by the image's tag."""
    recipe = (workspace.folder / "image.yaml").read_text()
    more = "  conf: {kind: confext, layers: [site], image: os}\npublish: {targets: [os, conf]}"
    (workspace.folder / "image.yaml").write_text(recipe.replace("publish: {targets: [os]}", more))
    push(workspace, "oci:out:v1")
    assert workspace.kbuild("diff", "oci:out:v1", "image.yaml")[0] == "nothing differs\n"
    workspace.edit("two")
    found = json.loads(workspace.kbuild("diff", "oci:out:v1", "image.yaml", "--json", code=1)[0])
    assert "extension.raw" in found["artifacts"]["changed"][0]["name"], found["artifacts"]
