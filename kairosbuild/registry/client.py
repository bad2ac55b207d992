"""One registry: requests with the rights they need, redirects with the credentials they may have, and no more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from kairosbuild.core.errors import HostError
from kairosbuild.registry.reference import Reference, is_loopback
from kairosbuild.registry.retry import Fault, Limits, retrying, seconds_asked
from kairosbuild.registry.wire import SMALL, Body, Reply, Wire, origin_of, trust

if TYPE_CHECKING:
    from kairosbuild.registry.logins import Logins

_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {408, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 5
_ALWAYS = {"User-Agent": "kairosbuild", "Accept-Encoding": "identity"}


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
        self._plain = is_loopback(endpoint) if insecure is None else insecure
        self._root = f"{'http' if self._plain else 'https'}://{endpoint}"
        self._origin = origin_of(self._root)
        self._ca = ca
        self._wire = Wire(self.limits, ca)
        self._sleep = sleep
        self._answered = False
        self._lock = threading.Lock()
        self._logins: Logins | None = None
        self._tokens: dict[frozenset[Access], str] = {}

    def url(self, reference: Reference, tail: str) -> str:
        """The address of something in a repository: `blobs/…`, `manifests/…`, `tags/list`."""
        return f"{self._root}/v2/{reference.repository}/{tail}"

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
        body: Callable[[], Body] | None = None,
    ) -> Iterator[Reply]:
        """One request, authenticated and redirected; its reply is open inside the block.

        `body` is made anew for each attempt; its length is among the headers. Raises Fault for what may pass,
        HostError for what will not. A status in `ok` is a reply.
        """
        reply = self._authorised(method, url, frozenset(access), {**_ALWAYS, **(headers or {})}, body)
        try:
            self._judge(reply, ok)
            yield reply
            reply.finish()
        finally:
            reply.close()

    # -- sending ------------------------------------------------------------------------------

    def _authorised(
        self,
        method: str,
        url: str,
        access: frozenset[Access],
        headers: dict[str, str],
        body: Callable[[], Body] | None,
    ) -> Reply:
        """Send with the token these rights have; when it is missing or stale, get one and send again."""
        sent = self._tokens.get(access, "")
        reply = self._redirected(method, url, headers, sent, body)
        challenge = reply.headers.get("WWW-Authenticate", "")
        if reply.status != 401 or not challenge or origin_of(reply.url) != self._origin:
            return reply
        reply.finish()
        with self._lock:
            if self._tokens.get(access, "") == sent:  # nobody else renewed it meanwhile
                self._tokens[access] = self._identity().answer(challenge, access)
            fresh = self._tokens[access]
        return self._redirected(method, url, headers, fresh, body)

    def _redirected(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        authorization: str,
        body: Callable[[], Body] | None,
    ) -> Reply:
        """Send, and follow redirects; credentials go to the registry's own origin and nowhere else."""
        for _ in range(_MOST_REDIRECTS + 1):
            mine = (
                {"Authorization": authorization} if authorization and origin_of(url) == self._origin else {}
            )
            reply = self._wire.send(method, url, {**headers, **mine}, body() if body else b"")
            self._answered = True
            if reply.status not in _REDIRECTS or "Location" not in reply.headers:
                return reply
            reply.finish()
            if body and reply.status not in {307, 308}:
                raise self._error("answers an upload with a redirect that drops it", "registry-failed")
            url = self.follow(url, reply.headers["Location"])
        raise self._error(f"redirects more than {_MOST_REDIRECTS} times", "registry-failed")

    def follow(self, base: str, location: str) -> str:
        """The address a Location header means. Raises HostError when that would leave TLS."""
        url = urljoin(base, location)
        scheme = urlsplit(url).scheme
        if scheme not in {"http", "https"} or (scheme == "http" and not self._plain):
            raise self._error(f"sends us from https to {scheme}:", "registry-insecure")
        return url

    def _identity(self) -> Logins:
        """Who we are here; most of what is read asks nobody, and then none of it is imported."""
        if self._logins is None:
            from kairosbuild.registry.logins import Logins

            self._logins = Logins(
                self.endpoint, plain=self._plain, trusted=trust(self._ca), limits=self.limits
            )
        return self._logins

    # -- judging ------------------------------------------------------------------------------

    def _judge(self, reply: Reply, ok: Collection[int]) -> None:
        status = reply.status
        if status in ok:
            return
        detail = _detail(reply)
        path = urlsplit(reply.url).path
        text = f"{self.endpoint}: {reply.method} {path}: {status} {detail}"
        if status in _PASSING:
            reason = "registry-throttled" if status == 429 else "registry-failed"
            raise Fault(text, reason=reason, after=seconds_asked(reply.headers.get("Retry-After")))
        if "MANIFEST_BLOB_UNKNOWN" in detail:  # another writer of the same blob may be rewriting its link
            raise Fault(text, reason="registry-failed")
        if status == 401:
            raise self._identity().refused(f"says {detail or status}")
        if "immutable" in detail.lower() or (status == 409 and "/manifests/" in path):
            raise HostError(text, reason="tag-immutable", hint="publish under another tag")
        reason, hint = {
            403: ("registry-denied", "has this account the right to do it?"),
            404: ("registry-not-found", "is the name right, and may this account see it?"),
        }.get(status, ("registry-failed", ""))
        raise HostError(text, reason=reason, hint=hint)

    def _error(self, what: str, reason: str) -> HostError:
        return HostError(f"the registry {self.endpoint} {what}", reason=reason)


def _detail(reply: Reply) -> str:
    """What the registry says went wrong, in its own codes and words (distribution-spec, Error Codes)."""
    try:
        errors = json.loads(b"".join(map(bytes, reply.pieces(SMALL))))["errors"]
        return "; ".join(f"{e.get('code', '')}: {e.get('message', '')}".strip(": ") for e in errors)[:500]
    except Exception:
        return reply.reason or ""
