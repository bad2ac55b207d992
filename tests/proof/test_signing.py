"""What we sign and cosign verifies, what cosign signs and we verify, and what neither may accept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peers import peer
from proof_samples import PASSWORD, new_key, pem, put_image

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.keys import keys
from kairosbuild.node.http import Access
from kairosbuild.node.problem import Problem
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository
from kairosbuild.node.trust import verifier
from kairosbuild.proof import signing, statement
from kairosbuild.registry import referrers
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import Target

SUITES = ("trixie", "sid")
SAID = {"result": "PASSED", "configuration": [{"name": "boots", "digest": {"sha256": "0" * 64}}]}


def cosign(suite: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COSIGN_PASSWORD": PASSWORD}
    command = [peer("cosign", suite=suite), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def cosign_key(folder: Path, suite: str = "trixie") -> Path:
    done = cosign(suite, "generate-key-pair", "--output-key-prefix", f"{folder}/cosign-{suite}")
    assert done.returncode == 0, done.stderr
    return folder / f"cosign-{suite}.key"


def named(place: str, digest: str) -> str:
    """cosign speaks plain HTTP to localhost."""
    return f"{place.replace('127.0.0.1', 'localhost')}@{digest}"


def check(suite: str, verb: str, public: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return cosign(suite, verb, "--key", str(public), "--insecure-ignore-tlog=true", *words)


@pytest.fixture(params=["cosign", "ecdsa", "ed25519", "rsa", "pkcs11"])
def key(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COSIGN_PASSWORD", PASSWORD)
    if request.param == "pkcs11":
        return str(request.getfixturevalue("token"))
    if request.param == "cosign":
        return str(cosign_key(tmp_path))
    (tmp_path / "key.pem").write_bytes(pem(new_key(request.param)))
    return str(tmp_path / "key.pem")


def taken_by_a_machine(place: str, digest: str, *trusted: bytes) -> bool:
    """Whether a machine that trusts these keys takes the image."""
    reference = parse(f"{place}@{digest}")
    repository = Repository(reference, Access())
    try:
        verifier([one.decode() for one in trusted])(repository, repository.manifest(digest))
    except Problem as problem:
        assert problem.reason == "not-signed"
        return False
    return True


def signed(target: Target, place: str, key: str, tmp_path: Path) -> tuple[str, Path]:
    """A new image that `key` signed and attested; its digest and the public key's file."""
    image, signer = put_image(target), keys.signer(key)
    signing.sign(target, image, place, signer)
    signing.attest(target, image, place, statement.TEST_RESULT, SAID, signer)
    public = tmp_path / "key.pub"
    public.write_bytes(signer.public.pem())
    return image.blob.digest, public


def test_cosign_verifies_what_we_signed(target: Target, place: str, key: str, tmp_path: Path) -> None:
    digest, public = signed(target, place, key, tmp_path)
    for suite in SUITES:
        done = check(suite, "verify", public, named(place, digest))
        assert done.returncode == 0, (suite, done.stderr)
        assert digest in done.stdout
        done = check(
            suite, "verify-attestation", public, "--type", statement.TEST_RESULT, named(place, digest)
        )
        assert done.returncode == 0, (suite, done.stderr)
        done = check(suite, "verify-attestation", public, "--type", "slsaprovenance1", named(place, digest))
        assert done.returncode != 0
    assert len(signing.verify(target, digest, keys.verifier(str(public)))) == 2
    assert taken_by_a_machine(place, digest, public.read_bytes())
    assert [one.predicate for one in signing.attestations(target, digest, keys.verifier(key))] == [SAID, SAID]


def test_cosign_refuses_another_key(target: Target, place: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(new_key("ecdsa")))
    digest, _ = signed(target, place, f"{tmp_path}/key.pem", tmp_path)
    other = keys.PrivateKey(new_key("ecdsa")).public
    (tmp_path / "other.pub").write_bytes(other.pem())
    for suite in SUITES:
        assert check(suite, "verify", tmp_path / "other.pub", named(place, digest)).returncode != 0
    with pytest.raises(InputError) as caught:
        signing.verify(target, digest, other)
    assert caught.value.reason == "signed-by-another"


@pytest.mark.parametrize("suite", SUITES)
def test_we_verify_what_cosign_signed(suite: str, target: Target, place: str, tmp_path: Path) -> None:
    image = put_image(target)
    digest, key = image.blob.digest, cosign_key(tmp_path, suite)
    quiet = ["--tlog-upload=false", "-y"] + (["--use-signing-config=false"] if suite == "sid" else [])
    (tmp_path / "said.json").write_text(json.dumps(SAID))
    for words in (
        ["sign"], ["attest", "--type", statement.TEST_RESULT, "--predicate", f"{tmp_path}/said.json"]
    ):  # fmt: skip
        done = cosign(suite, words[0], "--key", str(key), *quiet, *words[1:], named(place, digest))
        assert done.returncode == 0, done.stderr
    public = keys.verifier(str(key.with_suffix(".pub")))
    assert [one.form for one in signing.verify(target, digest, public)] == [
        "tag" if suite == "trixie" else "bundle"
    ]
    (said,) = signing.attestations(target, digest, public, statement.TEST_RESULT)
    assert said.predicate == SAID
    other = keys.PrivateKey(new_key("ecdsa")).public.pem()
    assert taken_by_a_machine(place, digest, other, public.pem())
    assert not taken_by_a_machine(place, digest, other)
    assert signing.attestations(target, digest, public, statement.SLSA) == ()


def test_oras_discovers_what_we_attached(target: Target, place: str, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(new_key("ecdsa")))
    digest, _ = signed(target, place, f"{tmp_path}/key.pem", tmp_path)
    for suite in SUITES:
        command = [
            peer("oras", suite=suite),
            "discover",
            "--plain-http",
            "--format",
            "json",
            f"{place}@{digest}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        rows = found.get("manifests") or found["referrers"]
        assert {row["artifactType"] for row in rows} == {statement.BUNDLE}
        assert len(rows) == 2


def test_signing_again_changes_nothing(target: Target, place: str, key: str, tmp_path: Path) -> None:
    signed(target, place, key, tmp_path)
    before = {tag: target.head_manifest(tag) for tag in target.tags()}
    signed(target, place, key, tmp_path)
    assert {tag: target.head_manifest(tag) for tag in target.tags()} == before


def test_a_second_key_leaves_the_first_ones_signature(target: Target, place: str) -> None:
    image = put_image(target)
    signers = [keys.PrivateKey(new_key(kind)) for kind in ("ecdsa", "ed25519", "rsa")]
    for one in signers:
        signing.sign(target, image, place, one)
    for one in signers:
        assert len(signing.verify(target, image.blob.digest, one.public)) == 2


def test_a_layout_holds_signatures_too(tmp_path: Path) -> None:
    target, _ = Registries().open(f"oci:{tmp_path}/dist")
    signer = keys.PrivateKey(new_key("ecdsa"))
    first = put_image(target, "one")
    signing.sign(target, first, "dist", signer)
    assert len(signing.verify(target, first.blob.digest, signer.public)) == 2
    assert Registries().open(f"oci:{tmp_path}/dist")[0].get_manifest("").blob == first.blob
    referrer = target.referrers(first.blob.digest)[0].blob.digest
    put_image(target, "two")  # latest moves, and what was said of the first goes with it
    assert target.head_manifest(referrer) is None


# -- what must not hold ----------------------------------------------------------------------------


def test_an_unsigned_image(target: Target) -> None:
    image = put_image(target)
    with pytest.raises(InputError) as caught:
        signing.verify(target, image.blob.digest, keys.PrivateKey(new_key("ecdsa")).public)
    assert caught.value.reason == "unsigned"


def test_a_signature_moved_to_another_image(target: Target, place: str) -> None:
    """Under the other's names: the payload still says whose it is."""
    signer = keys.PrivateKey(new_key("ecdsa"))
    mine, other = put_image(target, "mine"), put_image(target, "other")
    signing.sign(target, mine, place, signer)
    tag = referrers.tag_of(mine.blob.digest, "sig")
    target.tag({referrers.tag_of(other.blob.digest, "sig"): target.get_manifest(tag)})
    for one in referrers.listed(target, mine.blob.digest, statement.BUNDLE):
        files = tuple(referrers.File(d.media_type, data) for d, data in referrers.files(target, one))
        referrers.attach(target, other, [referrers.Referrer(statement.BUNDLE, files, "moved")])
    with pytest.raises(InputError) as caught:
        signing.verify(target, other.blob.digest, signer.public)
    assert caught.value.reason == "signed-by-another"


def test_an_attestation_is_no_signature(target: Target, place: str) -> None:
    signer, image = keys.PrivateKey(new_key("ecdsa")), put_image(target)
    signing.attest(target, image, place, statement.TEST_RESULT, SAID, signer)
    with pytest.raises(InputError):
        signing.verify(target, image.blob.digest, signer.public)


def test_junk_beside_a_signature_is_passed_over(target: Target, place: str) -> None:
    signer, image = keys.PrivateKey(new_key("ecdsa")), put_image(target)
    for number, junk in enumerate(
        (b"", b"[]", b"{}", b'{"mediaType":3,"dsseEnvelope":1}', b"\xff\xfe", b'{"mediaType":')
    ):
        file = referrers.File(statement.BUNDLE, junk)
        referrers.attach(target, image, [referrers.Referrer(statement.BUNDLE, (file,), f"junk{number}")])
    signing.sign(target, image, place, signer)
    assert len(signing.verify(target, image.blob.digest, signer.public)) == 2


# -- keys ------------------------------------------------------------------------------------------


def reason(reference: str) -> str:
    with pytest.raises(KbuildError) as caught:
        keys.signer(reference)
    assert PASSWORD not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)
    return caught.value.reason


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", pem(new_key("ecdsa")).decode())
    assert keys.signer("env://MY_KEY").public.id == keys.verifier("env://MY_KEY").id
    assert reason("env://NOT_SET") == "key-unreadable"


def test_encrypted_keys_want_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(new_key("ecdsa"), PASSWORD))
    assert reason(str(file)) == "key-password"
    monkeypatch.setenv("COSIGN_PASSWORD", "wrong")
    assert reason(str(file)) == "key-bad"
    assert reason(str(cosign_key(tmp_path))) == "key-bad"
    monkeypatch.setenv("COSIGN_PASSWORD", PASSWORD)
    keys.signer(str(file))


@pytest.mark.parametrize("junk", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
    b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\ne30=\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"])  # fmt: skip
def test_junk_is_no_key(junk: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSIGN_PASSWORD", PASSWORD)
    (tmp_path / "key").write_bytes(junk)
    assert reason(f"{tmp_path}/key") == "key-bad"


def test_odd_references(tmp_path: Path) -> None:
    assert reason(f"{tmp_path}/nothing") == "key-unreadable"
    assert reason("awskms:///alias/x") == "key-bad"
    assert reason("pkcs11:token=x;object=y?pin-value=1234") == "key-bad"
    assert reason("pkcs11:token=x") == "key-bad"


def test_a_token_names_one_key(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(token.replace("object=release", "object=other")) == "token-failed"
    assert reason(token.replace("token=ci", "token=other")) == "token-failed"
    monkeypatch.delenv("COSIGN_PKCS11_PIN")
    assert reason(token) == "token-failed"


def test_a_token_refuses_a_wrong_pin(token: str, target: Target, place: str) -> None:
    put_image(target)
    kbuild = [sys.executable, "-m", "kairosbuild", "sign", f"{place}:latest", "--key", token, "--json"]
    env = {**os.environ, "COSIGN_PKCS11_PIN": "999999"}
    done = subprocess.run(kbuild, env=env, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["errors"][0]["reason"] == "token-failed"
    assert "999999" not in done.stdout + done.stderr
    assert done.returncode == 3
    done = subprocess.run(kbuild, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
