"""Where logins are kept: the environment, podman's auth.json, Docker's config.json; the first that knows wins.

In the environment, `KBUILD_REGISTRY_USER` and `KBUILD_REGISTRY_PASSWORD` are for the host that
`KBUILD_REGISTRY_HOST` names and for no other; `DOCKER_AUTH_CONFIG` is a config.json by its content, as CI
services have it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import HostError


def configs() -> Iterator[tuple[str, dict[str, Any]]]:
    """What to call it in an error, and the configuration. Raises HostError `credentials-unreadable`."""
    env = os.environ
    user, password, host = (env.get(f"KBUILD_REGISTRY_{name}", "") for name in ("USER", "PASSWORD", "HOST"))
    if password and not host:
        what = "KBUILD_REGISTRY_PASSWORD is set, and KBUILD_REGISTRY_HOST does not say for which registry"
        raise HostError(
            what, reason="credentials-unreadable", hint="KBUILD_REGISTRY_HOST=registry.example.com"
        )
    if password:
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        yield "the environment", _config({"auths": {host: {"auth": auth}}})
    if text := env.get("DOCKER_AUTH_CONFIG"):
        yield "DOCKER_AUTH_CONFIG", read_config("DOCKER_AUTH_CONFIG", text.encode())
    for file in config_files():
        yield str(file), read_config(str(file), file.read_bytes())


def config_files() -> Iterator[Path]:
    """The files that exist, in the order podman and skopeo look (containers-auth.json(5))."""
    env = os.environ
    home = Path(env.get("HOME") or "/")
    places = [
        env.get("REGISTRY_AUTH_FILE"),
        f"{env['XDG_RUNTIME_DIR']}/containers/auth.json" if env.get("XDG_RUNTIME_DIR") else None,
        f"{env.get('XDG_CONFIG_HOME') or home / '.config'}/containers/auth.json",
        f"{env.get('DOCKER_CONFIG') or home / '.docker'}/config.json",
    ]
    return (Path(place) for place in places if place and Path(place).is_file())


def read_config(name: str, data: bytes) -> dict[str, Any]:
    """A configuration in the shape oras keeps it. Raises HostError `credentials-unreadable`."""
    try:
        return _config(json.loads(data))
    except (ValueError, AttributeError, TypeError) as problem:
        what = f"{name} is no configuration of logins ({type(problem).__name__})"
        raise HostError(what, reason="credentials-unreadable", hint="log in again") from problem


def _config(found: Any) -> dict[str, Any]:
    return {
        "auths": dict(found.get("auths") or {}),
        "credHelpers": dict(found.get("credHelpers") or {}),
        "credsStore": found.get("credsStore"),
    }


def registry_keys(endpoint: str, repository: str) -> Iterator[str]:
    """The names under which a login may stand, the most specific first."""
    hosts = [endpoint, f"https://{endpoint}", f"https://{endpoint}/v1/", f"https://{endpoint}/v2/"]
    if endpoint == "registry-1.docker.io":
        hosts = ["docker.io", "https://index.docker.io/v1/", "index.docker.io"]
    parts = repository.split("/") if repository else []
    for length in range(len(parts), 0, -1):
        yield "/".join([hosts[0], *parts[:length]])
    yield from hosts
