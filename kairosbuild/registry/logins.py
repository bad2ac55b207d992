"""Who we are to a registry: from its challenge to the Authorization header that meets it, by oras-py.

The only module that knows oras, imported when a registry first wants to know: credential loading, helpers
included, and requests for tokens. Of its transport nothing is used: as of 0.2.43 that sleeps for minutes on a
refused connection, hands a pull token to a push, has no timeout, follows redirects with credentials, and holds
whole blobs in memory, unverified. `oras.provider` is left out: its import takes longer than most of what is
done here (it loads a grammar of URIs for JSON Schema).
"""

from __future__ import annotations

from collections.abc import Collection
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import oras.auth
import requests
import requests.adapters
from oras.auth.utils import parse_auth_header
from oras.logger import logger as oras_logger
from requests import exceptions as broken

from kairosbuild.core.errors import HostError
from kairosbuild.registry.credentials import configs, registry_keys
from kairosbuild.registry.reference import is_loopback
from kairosbuild.registry.retry import Fault, Limits

if TYPE_CHECKING:
    from kairosbuild.registry.client import Access


class Logins:
    """The credentials configured for one registry, and the tokens that they get. `trusted` verifies TLS."""

    def __init__(self, endpoint: str, *, plain: bool, trusted: str, limits: Limits) -> None:
        self._endpoint = endpoint
        self._plain = plain
        oras_logger.quiet = True  # failures are raised here; nobody but listeners prints
        self._auth = oras.auth.get_auth_backend(
            "token", _session(endpoint, limits), plain, tls_verify=trusted
        )
        self._credentials: dict[str, str] = {}

    def answer(self, challenge: str, access: Collection[Access]) -> str:
        """The Authorization header that meets this challenge for these rights.

        Raises Fault, HostError (`registry-unauthorised`, `credentials-unreadable`, `registry-insecure`, …).
        """
        main = max(access, key=lambda right: len(right.actions))  # to push to; a mount's source only pulls
        login = self._login(main.repository)
        if challenge.lower().startswith("basic"):
            if not login:
                raise self.refused("asks for a user name and password, and none is configured")
            return f"Basic {login}"
        asked = parse_auth_header(challenge)
        self._check_realm(asked.realm or "", bool(login))
        asked.scope = sorted({*(asked.scope or "").split(), *map(str, access)})
        token = self._token(asked, login)
        if not token:
            what = "refuses the credentials configured" if login else "gives no anonymous token"
            raise self.refused(what)
        return f"Bearer {token}"

    def refused(self, what: str) -> HostError:
        """The error that says whom to ask for a login."""
        return HostError(
            f"the registry {self._endpoint} {what}",
            reason="registry-unauthorised",
            hint=f"`podman login {self._endpoint}` or `docker login {self._endpoint}`",
        )

    def _token(self, asked: Any, login: str) -> str:
        auth = self._auth
        if login:
            auth._basic_auth = login
        elif hasattr(auth, "_basic_auth"):
            del auth._basic_auth
        try:
            return str(
                auth.request_token(asked) or "" if login else auth.request_anonymous_token(asked) or ""
            )
        except broken.RequestException as problem:
            raise self._fault(problem) from problem

    def _login(self, repository: str) -> str:
        """The user and password (base64) configured for this repository, or ""."""
        if repository not in self._credentials:
            self._credentials[repository] = self._look_up(repository)
        return self._credentials[repository]

    def _look_up(self, repository: str) -> str:
        auth = self._auth
        for file, config in configs():
            auth._auth_config = config
            try:
                if any(auth._load_auth(key) for key in registry_keys(self._endpoint, repository)):
                    return str(auth._basic_auth)
            except Exception as problem:  # a helper's reply or an entry in no known shape
                what = f"{file}: no login could be read for {self._endpoint}: {type(problem).__name__}"
                raise HostError(what, reason="credentials-unreadable", hint="log in again") from problem
        return ""

    def _check_realm(self, realm: str, secret: bool) -> None:
        parts = urlsplit(realm)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise self._error(f"names {realm!r} as where tokens come from", "registry-unauthorised")
        plain_is_fine = self._plain or is_loopback(parts.hostname)
        if secret and parts.scheme == "http" and not plain_is_fine:
            raise self._error(f"wants a password over plain HTTP for {parts.hostname}", "registry-insecure")

    def _fault(self, problem: broken.RequestException) -> Fault | HostError:
        """Why no token came. Its address may hold the account's name, and so it is not told."""
        if isinstance(problem, broken.SSLError):
            return self._error("names a token service whose certificate is not trusted", "registry-tls")
        if isinstance(problem, broken.InvalidURL | broken.InvalidHeader | broken.MissingSchema):
            return self._error("names a token service at no address", "registry-failed")
        if isinstance(problem, broken.ProxyError):
            return self._error("has a token service that the proxy does not lead to", "registry-proxy")
        what = f"the token service of {self._endpoint} does not answer: {type(problem).__name__}"
        silent = isinstance(problem, broken.ConnectTimeout)
        return Fault(what, reason="registry-unreachable" if silent else "registry-broken-off", silent=silent)

    def _error(self, what: str, reason: str) -> HostError:
        return HostError(f"the registry {self._endpoint} {what}", reason=reason)


class _Adapter(requests.adapters.HTTPAdapter):
    """Gives every request of oras's a time limit."""

    def __init__(self, limits: Limits) -> None:
        self._timeout = (limits.connect, limits.read)
        super().__init__()

    def send(self, request: Any, **how: Any) -> requests.Response:  # type: ignore[override]  # Session names them all
        """Send, within the limits."""
        return super().send(request, **{**how, "timeout": how.get("timeout") or self._timeout})


def _session(endpoint: str, limits: Limits) -> requests.Session:
    session = requests.Session()
    adapter = _Adapter(limits)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers.update({"User-Agent": "kairosbuild", "Accept-Encoding": "identity"})
    session.auth = _no_netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # some take a cookie for a browser
    if is_loopback(endpoint):
        session.trust_env = False  # no proxy stands between this machine and itself
    return session


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Requests puts ~/.netrc over our Authorization header unless some `auth` is set."""
    return request
