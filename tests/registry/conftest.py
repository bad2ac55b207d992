"""A real registry on loopback (Debian's docker-registry), and one whose faults are scripted."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_registry import started
from fault_server import FaultServer

from kairosbuild.store.cas import Cas


@pytest.fixture(autouse=True)
def no_logins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's own credentials reach a test; the empty home."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("KBUILD_REGISTRY_")]:
        monkeypatch.delenv(name)
    for name in (
        "DOCKER_AUTH_CONFIG",
        "REGISTRY_AUTH_FILE",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "DOCKER_CONFIG",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of an empty docker-registry."""
    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        yield host


@pytest.fixture
def faults() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def cas(tmp_path: Path) -> Cas:
    return Cas(tmp_path / "cas")
