"""Docker's registry behind a password and behind TLS; the login is podman's own."""

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_registry import started
from peers import peer

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits

QUICK = Limits(connect=2, read=5, attempts=2, pause=0.01)
BLOB = of_bytes(b"x")
HTPASSWD = "user:$2a$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"  # open sesame


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    more = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}"
    with started(folder, more=more) as (host, _):
        yield host


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("secure")
    command = [peer("openssl"), "req", "-x509", "-nodes", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", "key", "-out", "cert", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    tls = f"tls: {{{{certificate: {folder}/cert, key: {folder}/key}}}}"
    tls = f'http: {{{{addr: "127.0.0.1:{{port}}", {tls}}}}}'
    with started(folder, http=tls) as (host, _):
        yield host, folder / "cert"


def put(host: str, **how: object) -> int:
    target, _ = Registries(limits=QUICK, **how).open(f"{host}/a")
    return target.put_blob(BLOB, lambda: io.BytesIO(b"x"))


def refused(reason: str, host: str, **how: object) -> HostError:
    with pytest.raises(HostError) as caught:
        put(host, **how)
    assert caught.value.reason == reason, caught.value
    return caught.value


def test_without_a_login(guarded: str) -> None:
    assert f"podman login {guarded}" in str(refused("registry-unauthorised", guarded))


def test_with_podmans_login(guarded: str, no_logins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = no_logins / "auth.json"
    command = [peer("skopeo"), "login", "--tls-verify=false", "--authfile", str(file)]
    command += ["-u", "user", "--password-stdin", guarded]
    subprocess.run(command, input=b"open sesame", check=True, capture_output=True)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    assert put(guarded) == 1


def test_with_a_login_in_the_environment(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBUILD_REGISTRY_USER", "user")
    monkeypatch.setenv("KBUILD_REGISTRY_PASSWORD", "open sesame")
    assert "KBUILD_REGISTRY_HOST" in str(refused("credentials-unreadable", guarded))
    monkeypatch.setenv("KBUILD_REGISTRY_HOST", "registry.example.com")
    refused("registry-unauthorised", guarded)
    monkeypatch.setenv("KBUILD_REGISTRY_HOST", guarded)
    assert put(guarded) == 1


def test_with_a_login_as_ci_services_have_it(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    login = base64.b64encode(b"user:open sesame").decode()
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {guarded: {"auth": login}}}))
    assert put(guarded) == 1
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", "secret words")
    assert "secret words" not in str(refused("credentials-unreadable", guarded))


def test_with_the_wrong_password(guarded: str, no_logins: Path) -> None:
    (no_logins / ".docker").mkdir()
    wrong = base64.b64encode(b"user:open barley").decode()
    (no_logins / ".docker/config.json").write_text(json.dumps({"auths": {guarded: {"auth": wrong}}}))
    problem = refused("registry-unauthorised", guarded)
    assert "barley" not in str(problem)
    assert wrong not in str(problem)


def test_with_a_credential_helper(guarded: str, no_logins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = no_logins / "docker-credential-test"
    helper.write_text('#!/bin/sh\ncat >/dev/null\necho \'{"Username": "user", "Secret": "open sesame"}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{no_logins}:/usr/bin:/bin")
    (no_logins / ".docker").mkdir()
    (no_logins / ".docker/config.json").write_text(json.dumps({"credHelpers": {guarded: "test"}}))
    assert put(guarded) == 1
    helper.write_text("#!/bin/sh\necho nonsense\n")
    assert refused("credentials-unreadable", guarded)


def test_a_certificate_nobody_vouches_for(secure: tuple[str, Path]) -> None:
    host, certificate = secure
    refused("registry-tls", host, plain_loopback=False)
    assert put(host, plain_loopback=False, ca=certificate) == 1


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_that_the_user_vouches_for(
    secure: tuple[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(secure[1]))
    assert put(secure[0], plain_loopback=False) == 1


def test_a_bundle_that_is_not_there(secure: tuple[str, Path], tmp_path: Path) -> None:
    problem = refused("registry-tls", secure[0], plain_loopback=False, ca=tmp_path / "gone")
    assert "gone" in str(problem)


def test_plain_http_to_a_tls_port(secure: tuple[str, Path]) -> None:
    refused("registry-failed", secure[0])
