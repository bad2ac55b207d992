"""Policies: signed bases at plan time, and gates before anything is published."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_workspace import Workspace
from proof_samples import new_key, pem

from kairosbuild.keys import keys
from kairosbuild.proof import policy, signing
from kairosbuild.proof.contents import Contents, LayerInfo
from kairosbuild.proof.packages import Package
from kairosbuild.recipe.workspace import LicensePolicy, Policy, SizePolicy
from kairosbuild.registry.registries import Registries

STATUS = "Package: telnetd\nStatus: install ok installed\nArchitecture: amd64\nVersion: 0.17\n"
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: AGPL-3+
"""


def refused(workspace: Workspace, *words: str) -> list[dict[str, Any]]:
    out, _ = workspace.kbuild(*words, "--json", code=2)
    errors: list[dict[str, Any]] = json.loads(out)["errors"]
    return errors


def build_file(workspace: Workspace, text: str) -> None:
    (workspace.folder / "BUILD.yaml").write_text(f"version: 1\nrecipes: ['*.yaml']\npolicy:\n{text}")


def put_key(folder: Path, name: str) -> keys.PrivateKey:
    private = keys.PrivateKey(key := new_key("ecdsa"))
    (folder / f"{name}.pub").write_bytes(private.public.pem())
    (folder / f"{name}.pem").write_bytes(pem(key))
    return private


# -- what is built upon ----------------------------------------------------------------------------


def test_a_base_must_be_signed_by_the_right_key(workspace: Workspace, place: str) -> None:
    workspace.kbuild("run", "image.yaml", "--push", place)
    target, _ = Registries().open(place)
    image = target.get_manifest("latest")
    right, other = put_key(workspace.folder, "right"), put_key(workspace.folder, "other")
    (workspace.folder / "on.yaml").write_text(
        f"version: 1\nname: on\nnodes:\n  site: {{kind: overlay, source: site}}\n  base: {{kind: base, image: '{place}:latest'}}\n"
    )
    build_file(workspace, f"  signed:\n  - {{images: '{place.rpartition('/')[0]}/*', keys: [right.pub]}}\n")

    for expected, signer in (("unsigned", other), ("signed-by-another", right)):
        (problem,) = refused(workspace, "plan", "on.yaml")
        assert (problem["reason"], problem["origin"]["line"], problem["origin"]["file"]) == (
            expected,
            5,
            "on.yaml",
        )
        signing.sign(target, image, place, signer)
    workspace.kbuild("plan", "on.yaml")
    lock = json.loads((workspace.folder / "on.lock").read_text())["nodes"]["base"]
    assert lock["signatures"] == {image.blob.digest: right.public.id}
    workspace.kbuild("run", "on.yaml", "--locked")

    build_file(workspace, "  signed:\n  - {images: '*', keys: [other.pub]}\n")  # the policy changed its mind
    (problem,) = refused(workspace, "run", "on.yaml", "--locked")
    assert problem["reason"] == "lock-unsigned"
    workspace.kbuild("run", "on.yaml")  # the other key signed it too, which is looked up now
    build_file(workspace, f"  signed:\n  - {{images: '{place}'}}\n  - {{images: '*', keys: [right.pub]}}\n")
    workspace.kbuild("run", "on.yaml", "--locked")  # exempt: the first rule that fits counts


def test_signatures_are_looked_up_at_mirrors(
    workspace: Workspace, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.kbuild("run", "image.yaml", "--push", place)
    host, _, name = place.partition("/")
    conf = workspace.folder / "registries.conf"
    conf.write_text(
        "[[registry]]\nlocation = 'quay.example'\n[[registry.mirror]]\nlocation = '127.0.0.1:1'\n"
        f"[[registry.mirror]]\nlocation = '{host}'\n"
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
    (workspace.folder / "on.yaml").write_text(
        f"version: 1\nname: on\nnodes:\n  base: {{kind: base, image: 'quay.example/{name}:latest'}}\n"
    )
    right = put_key(workspace.folder, "right")
    build_file(workspace, "  signed:\n  - {images: 'quay.example/*', keys: [right.pub]}\n")
    target, _ = Registries().open(place)
    image = target.get_manifest("latest")
    signing.sign(target, image, place, right)
    workspace.kbuild("lock", "on.yaml")
    lock = json.loads((workspace.folder / "on.lock").read_text())["nodes"]["base"]
    assert lock["signatures"] == {image.blob.digest: right.public.id}


def test_a_lock_with_odd_signatures_is_damaged(workspace: Workspace, place: str) -> None:
    workspace.kbuild("run", "image.yaml", "--push", place)
    (workspace.folder / "on.yaml").write_text(
        f"version: 1\nnodes:\n  base: {{kind: base, image: '{place}:latest'}}\n"
    )
    workspace.kbuild("lock", "on.yaml")
    lock = workspace.folder / "on.lock"
    document = json.loads(lock.read_text())
    for odd in ([], {"x": "y"}, {"sha256:" + "0" * 64: 1}):
        document["nodes"]["base"]["signatures"] = odd
        lock.write_text(json.dumps(document))
        (problem,) = refused(workspace, "plan", "on.yaml")
        assert problem["reason"] == "lock-damaged"


# -- what is published -----------------------------------------------------------------------------


def test_gates_stop_a_publication_with_all_that_is_wrong(workspace: Workspace, place: str) -> None:
    for path, text in (("var/lib/dpkg/status", STATUS), ("usr/share/doc/telnetd/copyright", COPYRIGHT)):
        file = workspace.folder / "site" / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
    build_file(
        workspace,
        "  forbidden: ['telnet*']\n  licenses: {deny: ['AGPL-*']}\n  sizes: {image: 1M, layer: 100M}\n",
    )
    problems = refused(workspace, "run", "image.yaml", "--push", place)
    assert [(one["reason"], one["origin"]["line"]) for one in problems] == [
        ("policy-package", 6), ("policy-licence", 6), ("policy-size", 10),
    ]  # fmt: skip
    assert "site: the package telnetd 0.17 is forbidden (telnet*)" in [one["message"] for one in problems]
    assert "AGPL-3.0-or-later" in problems[1]["message"]
    assert Registries().open(place)[0].tags() == ()  # nothing was sent
    build_file(workspace, "  licenses: {deny: ['AGPL-*'], exempt: [telnetd]}\n  sizes: {image: 1G}\n")
    workspace.kbuild("run", "image.yaml", "--push", place)
    build_file(workspace, "  licenses: {allow: ['MIT']}\n")  # published already, which is no excuse
    assert {one["reason"] for one in refused(workspace, "run", "image.yaml", "--push", place)} == {
        "policy-licence"
    }


def judged(rules: Policy, *some: Package, files: int = 0) -> list[str]:
    layers = (LayerInfo("base", "sha256:x", 1000, 1), LayerInfo("site", "sha256:y", 10, 1))
    return [one.reason for one in policy.breaches(rules, "os", Contents(layers, some, {}), files)]


def package(name: str, licence: str) -> Package:
    return Package("deb", name, "1", "amd64", licence, "base")


@pytest.mark.parametrize(("rules", "licence", "broken"), [
    (LicensePolicy(deny=("GPL-3*",)), "GPL-3.0-only", True),
    (LicensePolicy(deny=("GPL-3*",)), "GPL-3.0-only OR MIT", False),
    (LicensePolicy(deny=("GPL-3*",)), "GPL-3.0-only AND MIT", True),
    (LicensePolicy(deny=("GPL-3*",)), "(GPL-3.0-only OR MIT) AND ISC", False),
    (LicensePolicy(allow=("MIT",)), "ISC", True),
    (LicensePolicy(allow=("GPL-2*",)), "GPL-2.0-only WITH Linux-syscall-note", False),
    (LicensePolicy(allow=("*",), deny=("LicenseRef-*",)), "LicenseRef-mine", True),
    (LicensePolicy(allow=("MIT",)), "NOASSERTION", False),
    (LicensePolicy(allow=("MIT",), unknown="deny"), "NOASSERTION", True),
    (LicensePolicy(unknown="deny", exempt=("p*",)), "NOASSERTION", False),
])  # fmt: skip
def test_licences_are_judged_by_their_alternatives(rules: LicensePolicy, licence: str, broken: bool) -> None:
    assert judged(Policy(licenses=rules), package("pkg", licence)) == ["policy-licence"] * broken


def test_sizes() -> None:
    assert judged(Policy(sizes=SizePolicy(image=1010, layer=1000))) == []
    assert judged(Policy(sizes=SizePolicy(image=1009, layer=999))) == ["policy-size"] * 2
    assert judged(Policy(sizes=SizePolicy(artifact=5, image=1)), files=6) == ["policy-size"]
    assert judged(Policy(sizes=SizePolicy(artifact=5, image=1)), files=5) == []
