"""Logins from every place they can be kept, used against a registry that wants them; then all that was told is searched.

Keys, their passwords and PINs: `test_published.py::test_no_secret_is_told`.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_workspace import Workspace
from debian_registry import started
from proof_samples import new_key, pem

HTPASSWD = "user:$2a$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
PASSWORD, WRONG = "open sesame", "open barley"
LOGIN, MISTAKEN = (base64.b64encode(f"user:{word}".encode()).decode() for word in (PASSWORD, WRONG))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "htpasswd").write_text(HTPASSWD)
    more = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}"
    with started(folder, more=more) as (host, _):
        yield host, folder / "data"


def kept(host: str, home: Path, password: str) -> dict[str, dict[str, str]]:
    """The environment for each place that a login is taken from; what has to be a file is below `home`."""
    login = base64.b64encode(f"user:{password}".encode()).decode()
    config = json.dumps({"auths": {host: {"auth": login}}})
    helper = json.dumps({"Username": "user", "Secret": password})
    for name in ("docker", "helped", "bin"):
        (home / name).mkdir(parents=True)
    (home / "auth.json").write_text(config)
    (home / "docker/config.json").write_text(config)
    (home / "helped/config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
    (home / "bin/docker-credential-test").write_text(f"#!/bin/sh\ncat >/dev/null\necho '{helper}'\n")
    (home / "bin/docker-credential-test").chmod(0o755)
    return {
        "environment": {
            "KBUILD_REGISTRY_HOST": host,
            "KBUILD_REGISTRY_USER": "user",
            "KBUILD_REGISTRY_PASSWORD": password,
        },
        "ci": {"DOCKER_AUTH_CONFIG": config},
        "podman": {"REGISTRY_AUTH_FILE": f"{home}/auth.json"},
        "docker": {"DOCKER_CONFIG": f"{home}/docker"},
        "helper": {"DOCKER_CONFIG": f"{home}/helped", "PATH": f"{home}/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
    }


def test_no_login_is_told(guarded: tuple[str, Path], tmp_path: Path) -> None:
    host, data = guarded
    (tmp_path / "work").mkdir()
    workspace = Workspace(tmp_path / "work")
    right, wrong = (kept(host, tmp_path / word, word) for word in (PASSWORD, WRONG))
    key = pem(new_key("ed25519"))
    (tmp_path / "cache.pem").write_bytes(key)
    said = ""
    for number, (source, env) in enumerate(right.items()):
        workspace.edit(f"text {number}")
        words = ["--push", f"{host}/os:{source}", "--events", "events", "--trace", "trace", "--json"]
        words += ["--cache-to", f"{host}/cache", "--cache-sign", str(tmp_path / "cache.pem")]
        told, err = workspace.kbuild("run", "image.yaml", *words, env=env)
        assert json.loads(told)["published"][0]["uploaded"] > 0, source
        said += told + err + "".join((workspace.folder / name).read_text() for name in ("events", "trace"))
        said += "".join(workspace.kbuild("pull", f"{host}/os:{source}", "-o", "x", env=env, code=2))
    for source, env in wrong.items():
        told = "".join(workspace.kbuild("push", "image.yaml", f"{host}/os:no", "--json", env=env, code=3))
        assert "registry-unauthorised" in told, source
        said += told
    proxied = {"HTTPS_PROXY": f"http://user:{WRONG.replace(' ', '%20')}@127.0.0.1:9"}
    said += "".join(workspace.kbuild("pull", "registry.test/os:1", "-o", "x", env=proxied, code=3))
    files = [file for root in (workspace.folder, data) for file in root.rglob("*") if file.is_file()]
    written = b"".join(file.read_bytes() for file in files)
    assert len(written) > 1_000_000  # the layers themselves are among it
    secrets = (PASSWORD, WRONG, WRONG.replace(" ", "%20"), LOGIN, MISTAKEN, key.decode().splitlines()[1])
    for secret in secrets:
        assert secret not in said
        assert secret.encode() not in written
