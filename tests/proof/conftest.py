"""A token, and a registry that keeps no referrers."""

import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from cli_workspace import Workspace
from debian_registry import no_logins as no_logins
from debian_registry import registry as registry
from peers import peer
from proof_samples import new_key, pem

from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import Target

NUMBERS = count()
PIN = "648219"
LIBRARY = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for a whole file: what is published is what counts here."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def workspace(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("KBUILD_CACHE_DIR", str(store))
    return Workspace(tmp_path / "work")


@pytest.fixture
def place(registry: str) -> str:
    return f"{registry}/proof/n{next(NUMBERS)}"


@pytest.fixture
def target(place: str) -> Target:
    return Registries().open(place)[0]


@pytest.fixture(scope="session")
def token_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an ECDSA key on a software token; one a process, since its module is set up once."""
    util = peer("softhsm2-util", "softhsm2")
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    (folder / "key.pem").write_bytes(pem(new_key("ecdsa")))
    init = ["--init-token", "--free", "--label", "ci", "--so-pin", "648220"]
    fill = ["--import", f"{folder}/key.pem", "--token", "ci", "--label", "release", "--id", "01"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SOFTHSM2_CONF", f"{folder}/softhsm.conf")
        for words in (init, fill):
            subprocess.run([util, *words, "--pin", PIN], check=True, capture_output=True)
        (folder / "key.pem").unlink()
        yield f"pkcs11:token=ci;object=release?module-path={LIBRARY}"


@pytest.fixture
def token(token_place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COSIGN_PKCS11_PIN", PIN)
    return token_place
