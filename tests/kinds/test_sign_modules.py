"""Kind sign-modules: OpenSSL agrees with every signature, equal twice, and no key is left anywhere."""

from __future__ import annotations

import datetime
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from boot_task import MODULES, VERSION, node
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from module_samples import driver
from peers import peer, softhsm
from small_task import SmallTask

from kairosbuild.core.canonical import dumps
from kairosbuild.core.errors import InputError
from kairosbuild.graph.node import Input
from kairosbuild.kernels import signature
from kairosbuild.kinds.sign_modules import SignModules, SignModulesSpec
from kairosbuild.oci.index import Index
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.store import Store


def key_pair(folder: Path, name: str, key: Any) -> tuple[Path, Path]:
    """A key and a certificate of it, as files."""
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} modules")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(0x1234567890ABCDEF)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(9999))
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    (folder / f"{name}.pem").write_bytes(made.public_bytes(pem))
    return folder / f"{name}.key", folder / f"{name}.pem"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        key_pair(folder, name, rsa.generate_private_key(65537, 2048))
    key_pair(folder, "elliptic", ec.generate_private_key(ec.SECP256R1()))
    return folder


PLAIN = driver(VERSION)
FILES = {
    f"{MODULES}/updates/hello.ko": PLAIN,
    f"{MODULES}/updates/packed.ko.xz": lzma.compress(PLAIN),
    f"{MODULES}/updates/theirs.ko": signature.sign(PLAIN, lambda data: b"somebody's"),
    f"{MODULES}/modules.dep": b"updates/packed.ko.xz:\n",
    f"{MODULES}/modules.builtin": b"",
}


def task_for(store: Store, keys: Path, certificate: str = "mine", key: str = "mine.key") -> SmallTask:
    layer = node(store, "wifi", FILES, kind="drivers")
    about = {"kernel": VERSION, "modules": [{"name": "hello", "signed": False}]}
    outputs = {
        **layer.outputs,
        "drivers": store.cas.put_bytes(dumps(about)),
        "boot": store.cas.put_bytes(b"{}"),
    }
    spec = SignModulesSpec(
        of="wifi", certificate="c.pem", key=str(keys / key) if key.endswith(".key") else key
    )
    return SmallTask(
        store,
        spec,
        inputs={"of": (Input("of", "drivers", outputs),)},
        sources={"certificate": keys / f"{certificate}.pem"},
    )


def files(task: SmallTask, outputs: Any) -> dict[str, bytes]:
    tar = task.path(outputs["layer"]).read_bytes()
    index = Index.loads(task.path(outputs["index"]).read_bytes())
    return {
        one.entry.path: tar[one.data : one.data + one.entry.size] for one in index if one.entry.type == "file"
    }


def test_every_module_without_a_signature_gets_one(debian_store: Store, keys: Path, tmp_path: Path) -> None:
    task = task_for(debian_store, keys)
    outputs = SignModules().build(task)
    found = files(task, outputs)
    assert set(found) == {
        f"{MODULES}/updates/hello.ko", f"{MODULES}/updates/packed.ko", f"{MODULES}/updates/theirs.ko",
        f"{MODULES}/modules.builtin",
    }  # fmt: skip
    assert found[f"{MODULES}/updates/hello.ko"] == found[f"{MODULES}/updates/packed.ko"]
    assert found[f"{MODULES}/updates/theirs.ko"] == FILES[f"{MODULES}/updates/theirs.ko"]
    assert json.loads(task.path(outputs["drivers"]).read_bytes())["modules"] == [
        {"name": "hello", "signed": True}
    ]
    assert outputs["boot"] == task.inputs["of"][0].outputs["boot"]
    image = found[f"{MODULES}/updates/hello.ko"]
    assert signature.without(image) == PLAIN
    (tmp_path / "cms").write_bytes(signature.cms_of(image))
    (tmp_path / "plain").write_bytes(PLAIN)
    verify = [
        peer("openssl"), "cms", "-verify", "-inform", "DER", "-in", "cms", "-content", "plain", "-binary",
        "-noverify", "-nointern", "-certfile", str(keys / "mine.pem"), "-out", "/dev/null",
    ]  # fmt: skip
    done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_equal_twice_and_no_key_is_left(debian_store: Store, keys: Path) -> None:
    first, second = (SignModules().build(task_for(debian_store, keys)) for _ in range(2))
    assert first == second
    secret = (keys / "mine.key").read_bytes().splitlines()[1]
    assert not any(secret in blob.read_bytes() for blob in debian_store.root.rglob("*") if blob.is_file())


BY_TOKEN = """
import sys
from pathlib import Path
from test_sign_modules import SignModules, Store, task_for
print(SignModules().build(task_for(Store(Path(sys.argv[1])), Path(sys.argv[2]), key=sys.argv[3]))["layer"].digest)
"""


def test_a_token_signs_the_same_layer(debian_store: Store, keys: Path, tmp_path: Path) -> None:
    token = softhsm(tmp_path, keys / "mine.key")
    tests = Path(__file__).parent
    env = {**os.environ, "SOFTHSM2_CONF": str(tmp_path / "softhsm.conf")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, (tests, tests.parent, tests.parents[1])))
    words = [sys.executable, "-c", BY_TOKEN, tmp_path / "store", keys, token]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    by_file = SignModules().build(task_for(debian_store, keys))
    assert done.stdout.strip() == by_file["layer"].digest


def test_a_key_is_looked_for_in_the_workspace_and_held_against_its_certificate(keys: Path) -> None:
    for key, reasons in {"mine.key": [], "other.key": ["key-mismatch"], "nowhere.key": [], "": []}.items():
        spec = SignModulesSpec(of="wifi", certificate="mine.pem", key=key)
        assert [one.reason for one in SignModules().preflight("signed", spec, keys)] == reasons


BAD = {
    "no key": ({"key": ""}, "key-missing"),
    "another's key": ({"key": "other.key"}, "key-mismatch"),
    "not of RSA": ({"certificate": "elliptic", "key": "elliptic.key"}, "key-unsupported"),
}


@pytest.mark.parametrize(("given", "reason"), BAD.values(), ids=BAD.keys())
def test_keys_that_will_not_do(debian_store: Store, keys: Path, given: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError) as error:
        SignModules().build(task_for(debian_store, keys, **given))
    assert error.value.reason == reason
    assert error.value.hint


def test_only_what_has_modules_is_signed() -> None:
    known = {
        name: Declaration(name, kind, {})
        for name, kind in {"d": "drivers", "k": "kernel", "o": "overlay"}.items()
    }
    found = {
        name: list(SignModules().check("s", Declaration("s", "sign-modules", {}, {"of": (name,)}), known))
        for name in known
    }
    assert found["d"] == found["k"] == []
    assert "kind overlay" in found["o"][0][1]
