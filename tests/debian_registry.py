"""Debian's docker-registry as a process of the test, on a loopback port of its own; and nobody's logins beside it."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from peers import peer

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}
{http}
{more}
"""
ANOTHER = os.environ.get("KBUILD_TEST_REGISTRY", "")
PLAIN = 'http: {{addr: "127.0.0.1:{port}"}}'


@contextmanager
def started(
    folder: Path, *, port: int = 0, http: str = PLAIN, more: str = ""
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """HOST:PORT and the process. The data stay in `folder`, so that it can be started again on them."""
    port = port or free_port()
    config = folder / "config.yml"
    config.write_text(CONFIG.format(data=folder / "data", http=http.format(port=port), more=more))
    with serving([peer("docker-registry"), "serve", str(config)], folder, port) as running:
        yield running


@contextmanager
def serving(command: list[str], folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A registry that this command starts on this port."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(port, process)
            yield f"127.0.0.1:{port}", process
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        assert process.poll() is None, "the registry ended at once"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.025)
    raise AssertionError("the registry does not answer")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of an empty docker-registry, which has no referrers API; or of the one that is said."""
    folder = tmp_path_factory.mktemp("registry")
    with anothers(ANOTHER, folder) if ANOTHER else started(folder) as (host, _):
        yield host


def anothers(program: str, folder: Path) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """A registry that is started as PROGRAM ADDRESS FOLDER, such as `registry/google/main.go`."""
    port = free_port()
    return serving([program, f"127.0.0.1:{port}", str(folder)], folder, port)


@pytest.fixture(autouse=True)
def no_logins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's own logins or keys reach a test; the empty home."""
    home = tmp_path_factory.mktemp("home")
    for name in os.environ.keys() & _PERSONAL | {
        one for one in os.environ if one.startswith("KBUILD_REGISTRY_")
    }:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


_PERSONAL = {
    "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "NETRC",
    "COSIGN_PASSWORD",
}  # fmt: skip
