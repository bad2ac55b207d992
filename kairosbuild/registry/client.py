"""HTTP to one registry, over oras-py: its credential loading, token requests and URLs, made safe.

The only module that knows oras, and of it only what needs no `oras.provider`, whose import takes longer than
most of what is done here (it loads a grammar of URIs for JSON Schema). What it does not take from oras is what oras gets wrong as of 0.2.43:
its request loop (sleeps for minutes on a refused connection, hands a pull token to a push, has no
timeout, follows redirects with credentials) and its transfers (whole blobs in memory, unverified).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import oras.auth
import oras.container
import requests
import requests.adapters
from oras.auth.utils import parse_auth_header
from oras.logger import logger as oras_logger
from requests import exceptions as broken

from kairosbuild.core.errors import HostError, KbuildError
from kairosbuild.registry.credentials import configs, registry_keys
from kairosbuild.registry.reference import Reference, is_loopback
from kairosbuild.registry.retry import Fault, Limits, retrying, seconds_asked

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 5
_REPLY = 64 << 10  # bytes read of a reply that is only for people

Response = requests.Response


class Body(Protocol):
    """A request's body: made anew for each attempt, sent in chunks, its length known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Access:
    """A right on a repository, as a token's scope has it."""

    repository: str
    actions: str  # "pull" or "pull,push"

    def __str__(self) -> str:
        return f"repository:{self.repository}:{self.actions}"


class Client:
    """One registry. Threads share it; each set of rights has its own token, so a pull's never serves a push.

    `insecure` (plain HTTP) is what the host's name says, loopback or not, unless given. `ca` is a bundle to
    verify TLS with. `limits` bound time and attempts.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        insecure: bool | None = None,
        ca: Path | None = None,
        limits: Limits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoint = endpoint
        self.limits = limits or Limits()
        plain = is_loopback(endpoint) if insecure is None else insecure
        oras_logger.quiet = True  # failures are raised here; nobody but listeners prints
        verify: bool | str = str(ca) if ca else True
        self._session = requests.Session()
        self._auth = oras.auth.get_auth_backend("token", self._session, plain, tls_verify=verify)
        self._origin = _origin(f"{self._auth.prefix}://{endpoint}")
        self._verify = verify
        self._sleep = sleep
        self._answered = False
        self._lock = threading.Lock()
        self._tokens: dict[frozenset[Access], str] = {}
        self._credentials: dict[str, str] = {}
        self._prepare_session(self._session)

    def url(self, reference: Reference, tail: str) -> str:
        """The address of something in a repository: `blobs/…`, `manifests/…`, `tags/list`."""
        container = oras.container.Container(f"{reference.endpoint}/{reference.repository}")
        return f"{self._auth.prefix}://{container.registry}/v2/{container.api_prefix}/{tail}"

    def retry(self, work: Callable[[], Any], *, moved: Callable[[], int] = lambda: 0) -> Any:
        """Do `work`, which makes requests, again when it meets a passing fault. `moved`: see `retrying`."""
        return retrying(work, self.limits, known=lambda: self._answered, moved=moved, sleep=self._sleep)

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        *,
        access: Collection[Access],
        ok: Collection[int] = (200,),
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Body | bytes] | None = None,
    ) -> Iterator[Response]:
        """One request, authenticated and redirected; its reply is open inside the block.

        Raises Fault for what may pass, HostError for what will not. A status in `ok` is a reply.
        """
        try:
            response = self._authorised(method, url, frozenset(access), dict(headers or {}), body)
        except broken.RequestException as problem:
            raise self._fault(problem) from problem
        try:
            self._judge(response, ok)
            yield response
            _finish(response)
        finally:
            response.close()

    # -- sending ------------------------------------------------------------------------------

    def _authorised(
        self,
        method: str,
        url: str,
        access: frozenset[Access],
        headers: dict[str, str],
        body: Callable[[], Body | bytes] | None,
    ) -> Response:
        """Send with the token these rights have; when it is missing or stale, get one and send again."""
        sent = self._tokens.get(access, "")
        response = self._redirected(method, url, headers, sent, body)
        challenge = response.headers.get("WWW-Authenticate", "")
        if response.status_code != 401 or not challenge or _origin(str(response.url)) != self._origin:
            return response
        _finish(response)
        with self._lock:
            if self._tokens.get(access, "") == sent:  # nobody else renewed it meanwhile
                self._tokens[access] = self._answer(challenge, access)
            fresh = self._tokens[access]
        return self._redirected(method, url, headers, fresh, body)

    def _redirected(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        authorization: str,
        body: Callable[[], Body | bytes] | None,
    ) -> Response:
        """Send, and follow redirects; credentials go to the registry's own origin and nowhere else."""
        for _ in range(_MOST_REDIRECTS + 1):
            mine = {"Authorization": authorization} if authorization and _origin(url) == self._origin else {}
            response: Response = self._session.request(
                method,
                url,
                headers={**headers, **mine},
                data=body() if body else None,
                stream=True,
                allow_redirects=False,
                verify=self._verify,
            )
            self._answered = True
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return response
            _finish(response)
            if body and response.status_code not in {307, 308}:
                raise self._error("answers an upload with a redirect that drops it", "registry-failed")
            url = self.follow(url, response.headers["Location"])
        raise self._error(f"redirects more than {_MOST_REDIRECTS} times", "registry-failed")

    def follow(self, base: str, location: str) -> str:
        """The address a Location header means. Raises HostError when that would leave TLS."""
        url = urljoin(base, location)
        scheme = urlsplit(url).scheme
        if scheme not in {"http", "https"} or (scheme == "http" and self._origin[0] == "https"):
            raise self._error(f"sends us from https to {scheme}:", "registry-insecure")
        return url

    # -- rights -------------------------------------------------------------------------------

    def _answer(self, challenge: str, access: frozenset[Access]) -> str:
        """The Authorization header that meets this challenge for these rights."""
        main = max(access, key=lambda right: len(right.actions))  # to push to; a mount's source only pulls
        login = self._login(main.repository)
        if challenge.lower().startswith("basic"):
            if not login:
                raise self._unauthorised("asks for a user name and password, and none is configured")
            return f"Basic {login}"
        asked = parse_auth_header(challenge)
        self._check_realm(asked.realm or "", bool(login))
        asked.scope = sorted({*(asked.scope or "").split(), *map(str, access)})
        auth = self._auth
        if login:
            auth._basic_auth = login
        elif hasattr(auth, "_basic_auth"):
            del auth._basic_auth
        token = auth.request_token(asked) if login else auth.request_anonymous_token(asked)
        if not token:
            what = "refuses the credentials configured" if login else "gives no anonymous token"
            raise self._unauthorised(what)
        return f"Bearer {token}"

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
                if any(auth._load_auth(key) for key in registry_keys(self.endpoint, repository)):
                    return str(auth._basic_auth)
            except Exception as problem:  # a helper's reply or an entry in no known shape
                what = f"{file}: no login could be read for {self.endpoint}: {type(problem).__name__}"
                raise HostError(what, reason="credentials-unreadable", hint="log in again") from problem
        return ""

    def _check_realm(self, realm: str, secret: bool) -> None:
        parts = urlsplit(realm)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise self._error(f"names {realm!r} as where tokens come from", "registry-unauthorised")
        plain_is_fine = self._origin[0] == "http" or is_loopback(parts.hostname)
        if secret and parts.scheme == "http" and not plain_is_fine:
            raise self._error(f"wants a password over plain HTTP for {parts.hostname}", "registry-insecure")

    # -- judging ------------------------------------------------------------------------------

    def _judge(self, response: Response, ok: Collection[int]) -> None:
        status = response.status_code
        if status in ok:
            return
        detail = _detail(response)
        path = urlsplit(str(response.url)).path
        text = f"{self.endpoint}: {response.request.method} {path}: {status} {detail}"
        if status in _PASSING:
            reason = "registry-throttled" if status == 429 else "registry-failed"
            raise Fault(text, reason=reason, after=seconds_asked(response.headers.get("Retry-After")))
        if "MANIFEST_BLOB_UNKNOWN" in detail:  # another writer of the same blob may be rewriting its link
            raise Fault(text, reason="registry-failed")
        if status == 401:
            raise self._unauthorised(f"says {detail or status}")
        if "immutable" in detail.lower() or (status == 409 and "/manifests/" in path):
            raise HostError(text, reason="tag-immutable", hint="publish under another tag")
        reason, hint = {
            403: ("registry-denied", "has this account the right to do it?"),
            404: ("registry-not-found", "is the name right, and may this account see it?"),
        }.get(status, ("registry-failed", ""))
        raise HostError(text, reason=reason, hint=hint)

    def _fault(self, problem: broken.RequestException) -> Fault | KbuildError:
        if isinstance(problem, broken.SSLError):
            return HostError(f"{self.endpoint}: {_core(problem)}", reason="registry-tls")
        if isinstance(problem, broken.InvalidURL | broken.InvalidHeader | broken.MissingSchema):
            return HostError(f"{self.endpoint}: {_core(problem)}", reason="registry-failed")
        cause = getattr(problem.args[0] if problem.args else None, "reason", None)
        silent = isinstance(problem, broken.ConnectTimeout) or type(cause).__name__ in _NEVER_CONNECTED
        reason = "registry-unreachable" if silent else "registry-broken-off"
        return Fault(f"{self.endpoint}: {_core(problem)}", reason=reason, silent=silent)

    def _error(self, what: str, reason: str) -> HostError:
        return HostError(f"the registry {self.endpoint} {what}", reason=reason)

    def _unauthorised(self, what: str) -> HostError:
        return HostError(
            f"the registry {self.endpoint} {what}",
            reason="registry-unauthorised",
            hint=f"`podman login {self.endpoint}` or `docker login {self.endpoint}`",
        )

    def _prepare_session(self, session: requests.Session) -> None:
        adapter = _Adapter(self.limits)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        session.headers.update({"User-Agent": "kairosbuild", "Accept-Encoding": "identity"})
        session.auth = _no_netrc
        session.cookies.set_policy(
            DefaultCookiePolicy(allowed_domains=[])
        )  # some take a cookie for a browser
        if is_loopback(self.endpoint):
            session.trust_env = False  # no proxy stands between this machine and itself


_NEVER_CONNECTED = {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}


class _Adapter(requests.adapters.HTTPAdapter):
    """Gives every request, oras's own for tokens too, a time limit."""

    def __init__(self, limits: Limits) -> None:
        self._timeout = (limits.connect, limits.read)
        super().__init__(pool_connections=4, pool_maxsize=limits.connections)

    def send(self, request: Any, **how: Any) -> Response:  # type: ignore[override]  # Session names them all
        """Send, within the limits."""
        return super().send(request, **{**how, "timeout": how.get("timeout") or self._timeout})


def read_all(response: Response, limit: int) -> bytes:
    """A reply's whole body. Raises HostError `registry-lied` when it is longer than `limit` bytes."""
    data = b"".join(read_chunks(response, limit + 1))
    if len(data) > limit:
        raise HostError(f"{response.url}: more than {limit} bytes", reason="registry-lied")
    return data


def read_chunks(response: Response, limit: int, chunk: int = 1 << 20) -> Iterable[bytes]:
    """A reply's body as it was sent, at most `limit` bytes. Raises Fault when the connection breaks off."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise HostError(f"{response.url}: encoded, unasked", reason="registry-lied")
    while limit > 0:
        try:
            data = response.raw.read(min(chunk, limit), decode_content=False)
        except Exception as problem:
            raise Fault(f"{response.url}: {_core(problem)}", reason="registry-broken-off") from problem
        if not data:
            return
        limit -= len(data)
        yield data


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Requests puts ~/.netrc over our Authorization header unless some `auth` is set."""
    return request


def _detail(response: Response) -> str:
    """What the registry says went wrong, in its own codes and words (distribution-spec, Error Codes)."""
    try:
        data = b"".join(read_chunks(response, _REPLY))
        errors = json.loads(data)["errors"]
        return "; ".join(f"{e.get('code', '')}: {e.get('message', '')}".strip(": ") for e in errors)[:500]
    except Exception:
        return response.reason or ""


def _core(problem: BaseException) -> str:
    """The innermost words of an error that urllib3 and requests wrapped."""
    inner = problem.args[0] if problem.args else None
    inner = getattr(inner, "reason", None) or inner
    if isinstance(inner, BaseException):
        return _core(inner)
    return str(problem).rpartition("): ")[2] or type(problem).__name__


def _finish(response: Response) -> None:
    """Give the connection back for the next request, unless too much of a reply is still to come."""
    small = response.headers.get("Content-Length", "0").strip()
    if response.request.method == "HEAD" or (small.isdigit() and int(small) <= _REPLY):
        with suppress(Exception):
            response.raw.drain_conn()
    response.close()
