"""HTTP to one registry with what Python brings: tokens and logins, redirects without them, errors in words."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kairosbuild.node.problem import Problem

_TIMEOUT = 60.0
_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REDIRECTS = 5
_SMALL = 4 << 20
_CHALLENGE = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
"""Where distributions keep the authorities they trust."""

Reply = http.client.HTTPResponse


class Broken(Problem):
    """A connection that broke off, or a server that is busy: it may be tried again."""


@dataclass(frozen=True, slots=True)
class Access:
    """How hosts are reached: authorities of one's own, hosts without TLS, logins (docker's `auths`)."""

    ca: Path | None = None
    insecure: frozenset[str] = frozenset()
    logins: Mapping[str, str] = field(default_factory=dict)  # host → base64 of user:password

    def plain(self, host: str) -> bool:
        """Whether this host is spoken to without TLS."""
        return host in self.insecure or host.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")


def logins_in(path: Path) -> dict[str, str]:
    """The logins of a file as docker and podman write it. Raises Problem `bad-auth`."""
    try:
        found = json.loads(path.read_text()).get("auths", {})
        return {host: str(one["auth"]) for host, one in found.items() if one.get("auth")}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as problem:
        raise Problem(f"{path} holds no logins: {problem}", reason="bad-auth") from problem


class Session:
    """One registry host. A token is kept for its repository."""

    def __init__(self, host: str, access: Access) -> None:
        self.host = host
        self._access = access
        self._base = f"{'http' if access.plain(host) else 'https'}://{host}"
        context = ssl.create_default_context(cafile=_bundle(access.ca))
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
        self._tokens: dict[str, str] = {}

    def get(
        self,
        repository: str,
        tail: str,
        headers: Mapping[str, str] | None = None,
        ok: tuple[int, ...] = (200,),
    ) -> Reply:
        """The reply to GET /v2/REPOSITORY/TAIL. Raises Problem `registry-…`, Broken for what may pass."""
        url = f"{self._base}/v2/{repository}/{tail}"
        reply = self._followed(url, dict(headers or {}), repository)
        if reply.status == 401 and (challenge := reply.headers.get("WWW-Authenticate")):
            reply.close()
            self._tokens[repository] = self._answer(challenge, repository)
            reply = self._followed(url, dict(headers or {}), repository)
        if reply.status in ok:
            return reply
        with reply:
            raise self._refusal(reply, url)

    def _followed(self, url: str, headers: dict[str, str], repository: str) -> Reply:
        """Send, and follow redirects; what authorises goes to the registry itself and nowhere else."""
        for _ in range(_MOST_REDIRECTS + 1):
            mine = self._tokens.get(repository, "") if url.startswith(f"{self._base}/") else ""
            reply = self._send(url, {**headers, **({"Authorization": mine} if mine else {})})
            if reply.status not in _REDIRECTS:
                return reply
            reply.close()
            onward = urllib.parse.urljoin(url, reply.headers.get("Location", ""))
            if urllib.parse.urlsplit(onward).scheme != "https" and self._base.startswith("https"):
                raise Problem(f"{self.host} sends us away from TLS", reason="registry-insecure")
            url = onward
        raise Problem(f"{self.host} redirects without end", reason="registry-failed")

    def _send(self, url: str, headers: Mapping[str, str]) -> Reply:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise Problem(f"{self.host} names {url!r}, which is no web address", reason="registry-failed")
        request = urllib.request.Request(url, headers={"User-Agent": "kbuild-node", **headers})  # noqa: S310
        try:
            reply: Reply = self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as answer:
            return answer  # type: ignore[return-value]  # it has what a reply has
        except urllib.error.URLError as problem:
            raise _unreachable(self.host, problem.reason) from problem
        except (OSError, http.client.HTTPException) as problem:
            raise _unreachable(self.host, problem) from problem
        return reply

    # -- rights -------------------------------------------------------------------------------

    def _answer(self, challenge: str, repository: str) -> str:
        """The Authorization header that meets a challenge."""
        login = self._access.logins.get(self.host, "")
        if challenge.lower().startswith("basic"):
            if not login:
                raise self._denied("asks for a login, and none is configured")
            return f"Basic {login}"
        asked = dict(_CHALLENGE.findall(challenge))
        query = {"service": asked.get("service", ""), "scope": f"repository:{repository}:pull"}
        realm = asked.get("realm", "")
        if login and urllib.parse.urlsplit(realm).scheme != "https" and not self._access.plain(self.host):
            raise Problem(f"{self.host} wants a password without TLS", reason="registry-insecure")
        headers = {"Authorization": f"Basic {login}"} if login else {}
        with self._send(f"{realm}?{urllib.parse.urlencode(query)}", headers) as reply:
            if reply.status != 200:
                raise self._denied("gives no token" if not login else "refuses the login configured")
            document = read_json(reply, self.host)
        return f"Bearer {document.get('token') or document.get('access_token') or ''}"

    def _refusal(self, reply: Reply, url: str) -> Problem:
        text = f"{self.host}: {urllib.parse.urlsplit(url).path}: {reply.status} {_said(reply)}"
        if reply.status in (408, 429) or reply.status >= 500:
            return Broken(text, reason="registry-failed")
        if reply.status == 404:
            return Problem(text, reason="registry-not-found", hint="is the reference right?")
        if reply.status in (401, 403):
            return self._denied(f"says {reply.status} for {urllib.parse.urlsplit(url).path!r}")
        return Problem(text, reason="registry-failed")

    def _denied(self, what: str) -> Problem:
        hint = "put a login for it into /etc/kbuild/auth.json, as `podman login --authfile` writes it"
        return Problem(f"{self.host} {what}", reason="registry-denied", hint=hint)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by hand, so that it is known what goes where."""

    def redirect_request(self, *what: Any, **more: Any) -> None:
        """None: the reply itself is the answer."""


def read_json(reply: IO[bytes], whose: str) -> dict[str, Any]:
    """A small JSON object out of a reply. Raises Problem `registry-lied`."""
    try:
        found = json.loads(reply.read(_SMALL))
    except (ValueError, RecursionError) as problem:
        raise Problem(f"{whose} sent no JSON: {problem}", reason="registry-lied") from problem
    if not isinstance(found, dict):
        raise Problem(f"{whose} sent no JSON object", reason="registry-lied")
    return found


def login(user: str, password: str) -> str:
    """A login as `auths` has it."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def _bundle(own: Path | None) -> str | None:
    if own is not None:
        return str(own)
    return next((one for one in _BUNDLES if Path(one).is_file()), None)


def _said(reply: Reply) -> str:
    try:
        errors = json.loads(reply.read(64 << 10))["errors"]
        return "; ".join(f"{one.get('code', '')} {one.get('message', '')}".strip() for one in errors)[:300]
    except Exception:
        return reply.reason or ""


def _unreachable(host: str, problem: object) -> Problem:
    if isinstance(problem, ssl.SSLError):
        plain = getattr(problem, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
        hint = "it speaks no TLS: --plain-http" if plain else "a CA of one's own goes to /etc/kbuild/ca.crt"
        return Problem(f"{host}: {problem}", reason="registry-tls", hint=hint)
    return Broken(f"{host}: {problem}", reason="registry-unreachable", hint="is the network up?")
