"""A token, and a registry that keeps no referrers."""

import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from debian_registry import started
from peers import peer
from proof_samples import new_key, pem

from kairosbuild.registry.registries import Registries
from kairosbuild.registry.target import Target

NUMBERS = count()
PIN = "648219"
LIBRARY = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's own logins or keys reach a test."""
    home = tmp_path_factory.mktemp("home")
    for name in (
        "REGISTRY_AUTH_FILE",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "DOCKER_CONFIG",
        "COSIGN_PASSWORD",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of an empty docker-registry, which has no referrers API."""
    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        yield host


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
