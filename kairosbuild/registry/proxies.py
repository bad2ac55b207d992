"""Which proxy stands between this machine and a host: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY without.

An HTTP proxy is asked for plain addresses and for tunnels (CONNECT); other kinds are refused, not passed by.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from kairosbuild.core.errors import HostError
from kairosbuild.registry.reference import is_loopback


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where it is. `headers` are what it wants to see, and no one else may; they are in no message."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy to ask for this host, None to go there directly, as always to this machine itself.

    Raises HostError `registry-proxy` for a value that names none.
    """
    if is_loopback(host) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from requests.utils import get_environ_proxies, select_proxy  # slow to import

    there = f"{scheme}://{host}:{port}"
    url = select_proxy(there, get_environ_proxies(there))
    return _read(url, scheme) if url else None


def _read(url: str, scheme: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "http":
        what = f"the proxy for {scheme}: is not named as http://HOST:PORT"  # its value may hold a password
        raise HostError(what, reason="registry-proxy", hint="see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY")
    if parts.username is None:
        return Proxy(host, port)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    basic = base64.b64encode(login.encode()).decode()
    return Proxy(host, port, {"Proxy-Authorization": f"Basic {basic}"})
