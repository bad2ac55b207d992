"""Signed images, TPM policies and enrolment files, held against the programs that own those formats."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_samples import stub
from boot_task import BASE, EMPTY, KERNEL, BootTask, layer
from peers import peer, softhsm

from kairosbuild.artifacts.signing import SignSpec, policies
from kairosbuild.boot import authenticode, ovmf, pcr, uki
from kairosbuild.cli.main import main
from kairosbuild.core.canonical import dumps
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.keys import cms, enrolment
from kairosbuild.keys.certificate import certificate
from kairosbuild.keys.keys import signer
from kairosbuild.kinds.boot import Boot
from kairosbuild.kinds.disk import Disk, DiskSpec
from kairosbuild.kinds.iso import Iso
from kairosbuild.kinds.netboot import Netboot
from kairosbuild.kinds.uki import Uki
from kairosbuild.store.store import Store


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "ours"
    assert main(["keys", "new", str(folder), "--name", "Test Ltd"]) == 0
    return folder


def run(*words: Any) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def play(action: Action) -> Mapping[str, bytes]:
    seed = " ".join(f"{name} {blob.digest}" for name, blob in sorted(action.inputs.items()))
    return dict.fromkeys(action.outputs, hashlib.sha256(seed.encode()).digest() * 1000)


def disk(
    store: Store, keys: Path, *, unsigned: Mapping[str, Any] | None = None, **sign: str
) -> tuple[Outputs, BootTask]:
    """A signed disk out of layers that are played; sources are the real files."""
    spec = DiskSpec(image="os", sign=SignSpec(certificate="db.crt", **sign))
    sources = {"sign.certificate": keys / "public/db.crt"}
    if sign.get("pcr_public"):
        sources["sign.pcr_public"] = keys / "public/pcr.pub"
    if sign.get("enrol"):
        sources["sign.enrol"] = keys / "public"
    task = BootTask(store, spec, play, sources=sources)
    listed = [
        {"name": f"l{n}", "layer": ref.layer.json(), "index": ref.index.json()}
        for n, ref in enumerate(layer(store, content) for content in (BASE, KERNEL))
    ]
    more = {"unsigned": unsigned} if unsigned else {}
    image = store.cas.put_bytes(dumps({**EMPTY, "layers": listed, **more}))
    task.inputs = {"image": (Input("os", "image", {"image": image}),)}
    return Disk().build(task), task


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> bytes:
    outputs, task = disk(
        Store(tmp_path / "store"), keys,
        key=str(keys / "db.key"), pcr_public="pcr.pub", pcr_key=str(keys / "pcr.key"),
    )  # fmt: skip
    return task.path(outputs["uki"]).read_bytes()


def test_keys_are_made_for_their_owner_alone(keys: Path) -> None:
    assert {path.name for path in keys.glob("*.key")} == {"PK.key", "KEK.key", "db.key", "pcr.key"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys.glob("*.key"))
    assert keys.stat().st_mode & 0o777 == 0o700
    assert "*.key" in (keys / ".gitignore").read_text()
    assert not [path for path in (keys / "public").iterdir() if b"PRIVATE" in path.read_bytes()]
    assert main(["keys", "new", str(keys)]) == 2, "keys are not overwritten"


def test_sbverify_finds_the_signature_good(signed: bytes, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "image.efi").write_bytes(signed)
    verify = [peer("sbverify", "sbsigntool"), "--cert"]
    assert "Signature verification OK" in run(*verify, keys / "public/db.crt", tmp_path / "image.efi")
    other = subprocess.run(
        [*verify, keys / "public/KEK.crt", tmp_path / "image.efi"], capture_output=True, check=False
    )
    assert other.returncode != 0
    damaged = bytearray(signed)
    damaged[uki.sections(signed)[-1].offset] ^= 1
    (tmp_path / "damaged.efi").write_bytes(damaged)
    assert subprocess.run(
        [*verify, keys / "public/db.crt", tmp_path / "damaged.efi"], capture_output=True, check=False
    ).returncode


def test_what_is_signed_is_what_sbsign_signs(signed: bytes, keys: Path, tmp_path: Path) -> None:
    """The digest is the same as that of the reference implementation, for an image with and without padding."""
    for number, image in enumerate((stub(), stub() + b"odd")):
        padded = authenticode.padded(image)
        (tmp_path / "plain.efi").write_bytes(image)
        words = [
            "--key",
            keys / "db.key",
            "--cert",
            keys / "public/db.crt",
            "--output",
            tmp_path / f"{number}.efi",
        ]
        run(peer("sbsign", "sbsigntool"), *words, tmp_path / "plain.efi")
        theirs = (tmp_path / f"{number}.efi").read_bytes()
        assert authenticode.digest(padded) in theirs


def test_signing_twice_makes_equal_disks(keys: Path, tmp_path: Path) -> None:
    made = [disk(Store(tmp_path / name), keys, key=str(keys / "db.key"))[0] for name in ("a", "b")]
    assert made[0] == made[1]


def test_sbat_names_the_unified_image(signed: bytes) -> None:
    text = uki.section(signed, ".sbat") if any(one.name == ".sbat" for one in uki.sections(signed)) else b""
    assert uki.SBAT in text or not text


def test_a_signed_image_is_not_signed_again(signed: bytes) -> None:
    with pytest.raises(KbuildError) as caught:
        authenticode.padded(signed)
    assert caught.value.reason == "already-signed"


# -- TPM -----------------------------------------------------------------------------------------


def test_policies_are_signed_by_the_named_key(signed: bytes, keys: Path, tmp_path: Path) -> None:
    import base64

    rows = json.loads(uki.section(signed, ".pcrsig"))["sha256"]
    assert len(rows) == len(pcr.PHASES)
    assert uki.section(signed, ".pcrpkey") == (keys / "public/pcr.pub").read_bytes()
    der = subprocess.run(
        ["openssl", "rsa", "-pubin", "-RSAPublicKey_out", "-in", keys / "public/pcr.pub", "-outform", "DER"],
        capture_output=True,
        check=True,
    ).stdout
    for row in rows:
        assert row["pcrs"] == [11] and row["pkfp"] == hashlib.sha256(der).hexdigest()
        (tmp_path / "pol").write_bytes(bytes.fromhex(row["pol"]))
        (tmp_path / "sig").write_bytes(base64.b64decode(row["sig"]))
        run(
            "openssl",
            "dgst",
            "-sha256",
            "-verify",
            keys / "public/pcr.pub",
            "-signature",
            tmp_path / "sig",
            tmp_path / "pol",
        )


MEASURE = """\
version: 1
name: measure
nodes:
  systemd:
    kind: tools
    packages: [systemd, coreutils, dash, libtss2-esys-3.0.2-0t64, libtss2-mu-4.0.1-0t64, libtss2-rc0t64]
  signed:
    kind: rule
    on: [systemd]
    command: >-
      cp key /tmp/key; chmod 600 /tmp/key;
      /usr/lib/systemd/systemd-measure sign --bank=sha256 --private-key=/tmp/key --public-key=pcrpkey
      --linux=linux --osrel=osrel --cmdline=cmdline --initrd=initrd --uname=uname --sbat=sbat --pcrpkey=pcrpkey
      PHASES > /out/signed
    sources: {SOURCES}
    outputs: [signed]
"""


@pytest.mark.slow
def test_policies_are_those_of_systemd_measure(keys: Path, tmp_path: Path) -> None:
    """Value by value and byte for byte, out of Debian's systemd in the sandbox."""
    made = bytearray(stub(3))
    at = 0x40 + 24 + 240 + 40 * 2  # the third section becomes an .sbat of 29 bytes
    made[at : at + 12] = b".sbat\0\0\0" + struct.pack("<I", 29)
    (place,) = struct.unpack_from("<I", made, at + 20)
    made[place : place + 512] = b"sbat,1,SBAT Version,sbat,1,x\n".ljust(512, b"\0")
    parts = {"os_release": b"ID=t\n", "initrd": b"initrd" * 999, "kernel": b"kernel" * 1001}
    image = uki.assemble(bytes(made), cmdline="quiet x", uname="6.1", **parts)
    image = uki.extended(image, {".pcrpkey": (keys / "public/pcr.pub").read_bytes()})
    names = ("linux", "osrel", "cmdline", "initrd", "uname", "sbat", "pcrpkey")
    for name in names:
        (tmp_path / name).write_bytes(uki.section(image, f".{name}"))
    shutil.copy(keys / "pcr.key", tmp_path / "key")
    listed = "{" + ", ".join(f"{name}: {name}" for name in (*names, "key")) + "}"
    phases = " ".join(f"--phase={phase}" for phase in pcr.PHASES)
    (tmp_path / "m.yaml").write_text(MEASURE.replace("{SOURCES}", listed).replace("PHASES", phases))
    words = [
        "run",
        str(tmp_path / "m.yaml"),
        "signed",
        "--no-publish",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    assert main([*words, "-o", f"signed={tmp_path / 'signed'}"]) == 0
    theirs = json.loads((tmp_path / "signed").read_bytes())["sha256"]
    ours = json.loads(policies(image, signer(str(keys / "pcr.key"))))["sha256"]
    assert sorted(map(dumps, theirs)) == sorted(map(dumps, ours))


# -- enrolment -----------------------------------------------------------------------------------


def test_signature_lists_are_what_efitools_reads(keys: Path, tmp_path: Path) -> None:
    run(peer("sig-list-to-certs", "efitools"), keys / "public/db.esl", tmp_path / "db")
    (der,) = tmp_path.glob("db-0.der")
    assert der.read_bytes() == certificate((keys / "public/db.crt").read_bytes(), "db").der


@pytest.mark.parametrize("name", enrolment.NAMES)
def test_signed_lists_are_as_the_firmware_checks_them(keys: Path, tmp_path: Path, name: str) -> None:
    """The PKCS#7 in an .auth, given its ContentInfo back, verifies over what the specification says is signed."""
    data = (keys / f"public/{name}.auth").read_bytes()
    stamp, (length,) = data[:16], struct.unpack_from("<I", data, 16)
    content = data[16 + length :]
    assert content == (keys / f"public/{name}.esl").read_bytes()
    said = (
        name.encode("utf-16-le") + enrolment.VENDOR[name].bytes_le + struct.pack("<I", 0x27) + stamp + content
    )
    (tmp_path / "said").write_bytes(said)
    (tmp_path / "signature").write_bytes(cms._enclosed(data[16 + 24 : 16 + length]))
    by = {"PK": "PK", "KEK": "PK", "db": "KEK"}[name]
    words = [
        "-inform",
        "DER",
        "-in",
        tmp_path / "signature",
        "-content",
        tmp_path / "said",
        "-noverify",
        "-binary",
    ]
    run("openssl", "smime", "-verify", *words, "-certfile", keys / f"public/{by}.crt", "-out", os.devnull)


def test_firmware_variables_stand_in_the_store_as_edk2_writes_them(keys: Path, tmp_path: Path) -> None:
    """A blank store as OVMF has it: a header, and ones."""
    guid = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    flash = bytes(72) + guid + struct.pack("<IBBHI", 4096, 0x5A, 0xFE, 0, 0)
    flash = flash.ljust(72 + 4096, b"\xff")
    content = enrolment.signature_list(
        [certificate((keys / "public/db.crt").read_bytes(), "db")], uuid.UUID(int=1)
    )
    first = ovmf.Variable("odd", uuid.UUID(int=2), 3, b"\1")
    made = ovmf.write(ovmf.write(flash, [first]), [ovmf.Variable("db", enrolment.SECURITY, 0x27, content)])
    assert len(made) == len(flash) and made.count(b"\xaa\x55") >= 2
    at = made.index("db".encode("utf-16-le") + b"\0\0")
    assert at % 4 == 0 and made[at + 6 : at + 6 + len(content)] == content
    with pytest.raises(KbuildError) as caught:
        ovmf.write(flash, [ovmf.Variable("big", uuid.UUID(int=2), 3, bytes(5000))])
    assert caught.value.reason == "bad-firmware"
    with pytest.raises(KbuildError):
        ovmf.write(bytes(100), [])


def test_an_efi_partition_gets_what_systemd_boot_enrols(keys: Path, tmp_path: Path) -> None:
    outputs, task = disk(Store(tmp_path / "store"), keys, key=str(keys / "db.key"), enrol="public")
    read = [peer("mtype", "mtools"), "-i", f"{task.path(outputs['disk'])}@@1M"]
    shown = subprocess.run([*read, "::loader/keys/auto/KEK.auth"], capture_output=True, check=True).stdout
    assert shown == (keys / "public/KEK.auth").read_bytes()
    conf = subprocess.run([*read, "::loader/loader.conf"], capture_output=True, check=True).stdout
    assert b"secure-boot-enroll if-safe\n" in conf


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sign", "reason"),
    [
        ({"key": "PK.key"}, "key-mismatch"),
        ({"key": ""}, "key-missing"),
        ({"key": "nowhere.key"}, "key-unreadable"),
        ({"key": "public/db.crt"}, "key-bad"),
        ({"key": "db.key", "pcr_public": "pcr.pub", "pcr_key": "db.key"}, "key-mismatch"),
    ],
)
def test_a_wrong_key_is_told_before_anything_is_built(
    keys: Path, tmp_path: Path, sign: dict[str, str], reason: str
) -> None:
    given = {
        name: str(keys / value) if value and name != "pcr_public" else value for name, value in sign.items()
    }
    store = Store(tmp_path / "store")
    with pytest.raises(KbuildError) as caught:
        disk(store, keys, **given)
    assert caught.value.reason == reason
    assert "PRIVATE" not in str(caught.value)


def test_modules_that_would_not_load_are_refused_before_anything_is_made(keys: Path, tmp_path: Path) -> None:
    left = {"kernel": "linux", "modules": {"wifi": ["hello", "bye"]}}
    with pytest.raises(KbuildError) as caught:
        disk(Store(tmp_path / "store"), keys, unsigned=left)
    assert caught.value.reason == "artifact-unsigned"
    assert all(word in caught.value.message for word in ("'linux'", "hello, bye of 'wifi'"))


@pytest.mark.parametrize(
    ("sign", "reasons"),
    [
        ({"key": "db.key", "enrol": "public"}, []),
        ({"key": "PK.key"}, ["key-mismatch"]),
        ({"key": "PK.key", "enrol": "."}, ["key-mismatch", "enrol-missing"]),
        ({"key": ""}, []),
        ({"key": "nowhere.key"}, []),
        ({"key": "public/db.crt"}, ["key-bad"]),
        ({"key": "db.key", "pcr_public": "public/pcr.pub", "pcr_key": "pcr.key"}, []),
        ({"key": "db.key", "pcr_public": "public/pcr.pub", "pcr_key": "db.key"}, ["key-mismatch"]),
        ({"key": "db.key", "pcr_public": "public/pcr.pub", "pcr_key": "nowhere.key"}, []),
        ({"key": "db.key", "pcr_public": "public/db.crt", "pcr_key": "pcr.key"}, ["key-bad"]),
        ({"certificate": "db.key"}, ["certificate-bad"]),
        ({"key": "env://NOT_SET_ANYWHERE"}, []),
        ({"key": "pkcs11:token=none;object=none"}, []),
    ],
)
def test_what_is_told_before_anything_runs(keys: Path, sign: dict[str, str], reasons: list[str]) -> None:
    """A key that is not there may not be needed: what it signed may be in a cache."""
    for kind in (Boot(), Disk(), Iso(), Netboot(), Uki()):
        spec = kind.Spec(image="os", sign=SignSpec(**{"certificate": "public/db.crt", **sign}))
        assert [one.reason for one in kind.preflight("it", spec, keys)] == reasons
        assert not list(kind.preflight("it", kind.Spec(image="os"), keys))


@pytest.fixture
def token(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """SoftHSM with the db key on it."""
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm.conf"))
    return softhsm(tmp_path, keys / "db.key")


def test_a_key_on_a_token_signs_the_same_bytes(keys: Path, tmp_path: Path, token: str) -> None:
    script = (
        "import sys; from pathlib import Path; from kairosbuild.keys import cms;"
        "from kairosbuild.keys.certificate import certificate;"
        "c = certificate(Path(sys.argv[1]).read_bytes(), 'c');"
        "sys.stdout.buffer.write(cms.detached(b'data', c, c.signer(sys.argv[2], 't')))"
    )
    words = [sys.executable, "-c", script, keys / "public/db.crt"]
    by_token = subprocess.run([*words, token], capture_output=True, check=True).stdout
    by_file = subprocess.run([*words, keys / "db.key"], capture_output=True, check=True).stdout
    assert by_token == by_file


def test_a_signature_is_what_openssl_verifies(keys: Path, tmp_path: Path) -> None:
    found = certificate((keys / "public/db.crt").read_bytes(), "db")
    for enclose in (True, False):
        (tmp_path / "sig").write_bytes(
            cms.detached(b"data", found, signer(str(keys / "db.key")), enclose=enclose)
        )
        (tmp_path / "data").write_bytes(b"data")
        words = [
            "-inform",
            "DER",
            "-in",
            tmp_path / "sig",
            "-content",
            tmp_path / "data",
            "-noverify",
            "-binary",
        ]
        run("openssl", "cms", "-verify", *words, "-certfile", keys / "public/db.crt", "-out", os.devnull)


def test_no_key_gets_into_the_store(keys: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _, task = disk(
        store,
        keys,
        key=str(keys / "db.key"),
        enrol="public",
        pcr_public="pcr.pub",
        pcr_key=str(keys / "pcr.key"),
    )
    secrets = [line for path in keys.glob("*.key") for line in path.read_bytes().splitlines()[1:-1]]
    held = b"\0".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"BEGIN CERTIFICATE" in held, "what may be known is there"
    assert b"PRIVATE KEY" not in held
    assert not [line for line in secrets if line in held]
    assert not [note for note in task.notes if "PRIVATE" in note]
    shutil.rmtree(tmp_path / "store")
