"""What firmware would not start: an image without a signature, or with one of a key that it does not have."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from boot_samples import stub

from kairosbuild.boot import authenticode
from kairosbuild.cli.main import main
from kairosbuild.keys import cms
from kairosbuild.keys.certificate import certificate
from kairosbuild.keys.der import sequence
from kairosbuild.keys.keys import signer
from kairosbuild.node import secureboot
from kairosbuild.node.problem import Problem


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        assert main(["keys", "new", str(folder / name), "--name", "The same"]) == 0
    return folder


def variables(folder: Path, keys: Path, *, enforced: bool = True, more: bytes = b"") -> Path:
    (folder / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c").write_bytes(bytes(4) + bytes([enforced]))
    lists = (keys / "ours/public/KEK.esl").read_bytes() + (keys / "ours/public/db.esl").read_bytes()
    (folder / "db-d719b2cb-3d3a-4596-a3bc-dad00e67656f").write_bytes(bytes(4) + lists + more)
    return folder


def image(path: Path, keys: Path, name: str) -> Path:
    made = authenticode.padded(stub())
    if name:
        known = certificate((keys / name / "public/db.crt").read_bytes(), name)
        signs = signer(str(keys / name / "db.key"))
        made = authenticode.attach(made, cms.signed("1.3.6.1.4.1.311.2.1.4", sequence(), known, signs))
    path.write_bytes(made)
    return path


def test_what_a_key_of_db_signed_is_taken(keys: Path, tmp_path: Path) -> None:
    secureboot.refuse_unstartable(image(tmp_path / "a", keys, "ours"), variables(tmp_path, keys))


def test_what_a_certificate_signed_that_a_key_of_db_issued_is_taken(keys: Path, tmp_path: Path) -> None:
    db, other = keys / "ours/db.key", keys / "other/db.key"
    asked, made = tmp_path / "csr", tmp_path / "leaf.crt"
    for words in (
        ["req", "-new", "-key", other, "-subj", "/CN=A leaf", "-out", asked],
        ["x509", "-req", "-in", asked, "-CA", keys / "ours/public/db.crt", "-CAkey", db, "-set_serial", "7",
         "-out", made],
    ):  # fmt: skip
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    leaf = certificate(made.read_bytes(), "leaf")
    signed = cms.signed("1.3.6.1.4.1.311.2.1.4", sequence(), leaf, signer(str(other)))
    (tmp_path / "a").write_bytes(authenticode.attach(authenticode.padded(stub()), signed))
    secureboot.refuse_unstartable(tmp_path / "a", variables(tmp_path, keys))


@pytest.mark.parametrize(("name", "why"), [("", "it is not signed"), ("other", "no certificate in its db")])
def test_what_firmware_would_refuse_is_refused(keys: Path, tmp_path: Path, name: str, why: str) -> None:
    made = image(tmp_path / "a", keys, name)
    with pytest.raises(Problem, match=why) as caught:
        secureboot.refuse_unstartable(made, variables(tmp_path, keys))
    assert caught.value.reason == "not-startable"
    secureboot.refuse_unstartable(made, variables(tmp_path, keys, enforced=False))
    secureboot.refuse_unstartable(made, tmp_path / "nowhere")


def test_where_single_images_are_known_by_their_hash_the_firmware_is_left_to_judge(
    keys: Path, tmp_path: Path
) -> None:
    by_hash = struct.pack("<16sIII", b"sha256 of an im.", 28 + 48, 0, 48) + bytes(48)
    secureboot.refuse_unstartable(image(tmp_path / "a", keys, ""), variables(tmp_path, keys, more=by_hash))
