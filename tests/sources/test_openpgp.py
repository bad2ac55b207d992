from pathlib import Path

import pysequoia
import pytest
from local_archive import Key

from kairosbuild.core.errors import HostError
from kairosbuild.sources.openpgp import DEBIAN, signed_text

TEXT = b"Origin: Debian\nSuite: trixie\n"


def test_what_was_signed_comes_out(tmp_path: Path) -> None:
    key = Key()
    assert signed_text(key.sign(TEXT), "it", key.keyring(tmp_path / "k.pgp")).strip() == TEXT.strip()


def test_nothing_beside_it_does(tmp_path: Path) -> None:
    key = Key()
    message = b"Suite: before\n" + key.sign(TEXT) + b"Suite: after\n"
    keyring = key.keyring(tmp_path / "k.pgp")
    try:
        got = signed_text(message, "it", keyring)
    except HostError as error:
        assert error.reason == "bad-signature"
    else:
        assert got.strip() == TEXT.strip()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m.replace(b"trixie", b"trixia"),
        lambda m: TEXT,
        lambda m: b"",
        lambda m: m[: len(m) // 2],
        lambda m: m.replace(b"Suite", b"Suite: sid\nSuite"),
    ],
    ids=["changed", "unsigned", "empty", "cut", "added"],
)
def test_what_was_not_signed_is_refused(tmp_path: Path, spoil: object) -> None:
    key = Key()
    assert callable(spoil)
    with pytest.raises(HostError) as error:
        signed_text(spoil(key.sign(TEXT)), "dists/trixie/InRelease", key.keyring(tmp_path / "k.pgp"))
    assert error.value.reason == "bad-signature"
    assert "dists/trixie/InRelease" in error.value.message
    assert "\n" not in error.value.message


def test_another_key_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"not signed by a key of k\.pgp"):
        signed_text(Key().sign(TEXT), "it", Key().keyring(tmp_path / "k.pgp"))


def test_the_shipped_keyring_knows_three_releases() -> None:
    names = " ".join(str(user) for cert in pysequoia.Cert.split_file(str(DEBIAN)) for user in cert.user_ids)
    for release in ("11/bullseye", "12/bookworm", "13/trixie"):
        assert release in names
