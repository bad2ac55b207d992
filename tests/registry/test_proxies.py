"""A proxy between this machine and a registry: tunnels, plain addresses, logins, exceptions."""

import io
import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from debian_registry import started
from fault_server import FaultServer
from peers import peer

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, KbuildError
from kairosbuild.registry.proxies import proxy_for
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits

QUICK = Limits(connect=2, read=5, attempts=2, pause=0.01)
DATA = b"some bytes of a layer\n" * 50_000
BLOB = of_bytes(DATA)


class Proxy:
    """A proxy on loopback that leads every name to this machine. `login` is what it wants, "" nothing."""

    def __init__(self, login: str = "") -> None:
        self.login = login
        self.asked: list[str] = []  # first lines
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._socket.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1)
            line = head.split(b"\r\n")[0].decode()
            self.asked.append(line)
            if self.login and f"Proxy-Authorization: Basic {self.login}".encode() not in head:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            tunnel = line.startswith("CONNECT")
            place = line.split()[1].removeprefix("http://").partition("/")[0]
            with socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2]))) as server:
                if tunnel:
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    server.sendall(head)  # our registries take whole addresses too
                _relay(client, server)


def _relay(one: socket.socket, other: socket.socket) -> None:
    while True:
        for ready in select.select([one, other], [], [], 30)[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (other if ready is one else one).sendall(data)


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, **how: str) -> Iterator[Proxy]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    proxy = Proxy(**how)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxied(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Docker's registry by TLS, as a name that no one but the proxy can resolve."""
    folder = tmp_path_factory.mktemp("secure")
    command = [peer("openssl"), "req", "-x509", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "key", "-out", "cert", "-days", "2"]
    command += ["-subj", "/CN=registry.test", "-addext", "subjectAltName=DNS:registry.test"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    tls = f'http: {{{{addr: "127.0.0.1:{{port}}", tls: {{{{certificate: {folder}/cert, key: {folder}/key}}}}}}}}'
    with started(folder, http=tls) as (host, _):
        yield f"registry.test:{host.rpartition(':')[2]}", folder / "cert"


def moved(place: str, tmp_path: Path, **how: object) -> None:
    target, _ = Registries(limits=QUICK, **how).open(f"{place}/a")  # type: ignore[arg-type]
    target.put_blob(BLOB, lambda: io.BytesIO(DATA))
    target.get_blob(BLOB, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def refused(reason: str, place: str, tmp_path: Path, **how: object) -> KbuildError:
    with pytest.raises(HostError) as caught:
        moved(place, tmp_path, **how)
    assert caught.value.reason == reason, caught.value
    return caught.value


def test_tls_goes_through_a_tunnel(
    proxy: Proxy, secure: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    moved(secure[0], tmp_path, ca=secure[1])
    assert set(proxy.asked) == {f"CONNECT {secure[0]} HTTP/1.1"} or set(proxy.asked) == {
        f"CONNECT {secure[0]} HTTP/1.0"
    }
    assert len(proxy.asked) == 1  # the connection is kept
    refused("registry-tls", secure[0], tmp_path)  # the proxy vouches for nobody


def test_plain_http_is_asked_for_by_its_whole_address(
    proxy: Proxy, faults: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    place = f"registry.test:{faults.host.rpartition(':')[2]}"
    moved(place, tmp_path, insecure=[place])
    assert proxy.asked[0] == f"POST http://{place}/v2/a/blobs/uploads/ HTTP/1.1"
    assert len(proxy.asked) == 1  # and the connection is kept


def test_tokens_come_by_the_proxy_too(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    with FaultServer(tokens=True) as server:
        place = f"registry.test:{server.host.rpartition(':')[2]}"
        server.realm = f"http://{place}/token"
        moved(place, tmp_path, insecure=[place])
        assert any(f"{place}/token" in line for line in proxy.asked)


def test_a_proxy_that_wants_a_login(
    secure: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(monkeypatch, login="dXNlcjpvcGVuIHNlc2FtZQ==") as proxy:  # user:open sesame
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:open%20sesame@127.0.0.1:{proxy.port}")
        moved(secure[0], tmp_path, ca=secure[1])
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:barley@127.0.0.1:{proxy.port}")
        problem = refused("registry-proxy", secure[0], tmp_path, ca=secure[1])
        assert "407" in str(problem) and "barley" not in str(problem)


def test_the_proxys_login_is_for_the_proxy_alone(
    secure: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(monkeypatch, login="dXNlcjpvcGVuIHNlc2FtZQ==") as proxy, FaultServer() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:open%20sesame@127.0.0.1:{proxy.port}")
        moved(server.host, tmp_path)  # loopback: no proxy, and so no login of it
        assert proxy.asked == [] and all(not seen.authorization for seen in server.seen)


def test_a_proxy_that_is_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in str(refused("registry-unreachable", "registry.test", tmp_path))


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("registry.test", "registry.test", True),
        (".test", "registry.test", True),
        ("other.test", "registry.test", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("registry.test:5000", "registry.test", True),
        ("registry.test:5001", "registry.test", False),
        ("*", "registry.test", True),
        ("", "localhost", True),
        ("", "127.0.0.1", True),
        ("", "::1", True),
        ("", "registry.test", False),
    ],
)
def test_who_is_asked_directly(exempt: str, host: str, direct: bool, proxy: Proxy, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    found = proxy_for("https", host, 5000)
    assert (found is None) == direct
    assert found is None or (found.host, found.port) == ("proxy.test", 3128)


@pytest.mark.parametrize(
    "value", ["socks5://user:barley@127.0.0.1:1080", "http://user:barley@:99999x", "https://p.test"]
)
def test_other_kinds_are_refused_and_not_passed_by(value: str, proxy: Proxy, monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(HostError) as caught:
        proxy_for("https", "registry.test", 443)
    assert caught.value.reason == "registry-proxy" and "barley" not in str(caught.value)
