"""Where logins are kept: podman's auth.json, then Docker's config.json, the first that knows the registry."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kairosbuild.core.errors import HostError


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


def read_config(file: Path) -> dict[str, Any]:
    """A configuration in the shape oras keeps it. Raises HostError `credentials-unreadable`."""
    try:
        found = json.loads(file.read_bytes())
        auths = dict(found.get("auths") or {})
        helpers = dict(found.get("credHelpers") or {})
        store = found.get("credsStore")
    except (OSError, ValueError, AttributeError, TypeError) as problem:
        what = f"{file}: {problem}"
        raise HostError(what, reason="credentials-unreadable", hint="log in again") from problem
    return {"auths": auths, "credHelpers": helpers, "credsStore": store}


def registry_keys(endpoint: str, repository: str) -> Iterator[str]:
    """The names under which a login may stand, the most specific first."""
    hosts = [endpoint, f"https://{endpoint}", f"https://{endpoint}/v1/", f"https://{endpoint}/v2/"]
    if endpoint == "registry-1.docker.io":
        hosts = ["docker.io", "https://index.docker.io/v1/", "index.docker.io"]
    parts = repository.split("/") if repository else []
    for length in range(len(parts), 0, -1):
        yield "/".join([hosts[0], *parts[:length]])
    yield from hosts
