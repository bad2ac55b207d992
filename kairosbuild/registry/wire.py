"""HTTP/1.1 over the standard library's client: connections that are kept, time limits, TLS, proxies.

It sends one request and gives back one reply, whatever that says: who may is `client`'s matter, when to try
again `retry`'s. No cookie is kept, no redirect followed, no ~/.netrc read, nothing compressed or decompressed.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from kairosbuild.core.errors import HostError
from kairosbuild.registry.proxies import Proxy, proxy_for
from kairosbuild.registry.retry import Fault, Limits

PIECE = 256 << 10  # bytes moved at once: what a processor keeps close while it is hashed and written
SMALL = 64 << 10  # bytes of a reply that is only for people, or that are read to keep its connection
_TRUST = "`registry: {ca: FILE}` in BUILD.yaml, or SSL_CERT_FILE, names who is trusted"
_PORTS = {"http": 80, "https": 443}
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_NEXT = r'<([^>]*)>\s*;\s*rel="?next"?'
_SAFE = "!#$%&'()*+,/:;=?@[]~"  # what may stand in an address as it is
_REFUSED = r"Tunnel connection failed: (\d+)"
_PASSING = (ssl.SSLEOFError, ssl.SSLZeroReturnError)

Body = bytes | Iterable[memoryview]


class Origin(NamedTuple):
    """Where a connection leads."""

    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """The origin of an address. Raises HostError `registry-failed` for one that is none."""
    try:
        parts = urlsplit(url)
        return Origin(parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0))
    except ValueError:
        raise HostError(f"{shown(url)!r} is no address", reason="registry-failed") from None


@dataclass(slots=True)
class _Line:
    """A connection. `proxy` is set where a proxy takes whole addresses, and not where it only carries a tunnel."""

    connection: http.client.HTTPConnection
    proxy: Proxy | None = None
    whole: bool = True  # all of the last request went out
    buffers: list[memoryview] = field(default_factory=list)  # of whatever comes; to get memory takes time

    @property
    def usable(self) -> bool:
        """Whether the other side still holds it: an idle connection has nothing to read."""
        sock = self.connection.sock
        if sock is None or not self.whole:
            return False
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)


def shown(url: str) -> str:
    """An address without its query, which may be a signature, and without a login."""
    scheme, mark, rest = url.partition("?")[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


class Wire:
    """Connections to any host, kept and used again. Threads share it; each request has one to itself.

    `ca` is a bundle of certificates to trust instead of the system's.
    """

    def __init__(self, limits: Limits, ca: Path | None = None) -> None:
        self._limits = limits
        self._ca = ca
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[_Line]] = {}
        weakref.finalize(self, _hang_up, self._idle)

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body = b"") -> Reply:
        """One request; its reply, whose body is still to be read.

        Raises Fault (`registry-unreachable`, `registry-broken-off`), HostError (`registry-tls`, `registry-proxy`).
        """
        origin = origin_of(url)
        line = self._line(origin)
        try:
            raw = _exchange(line, method, url, headers, body)
        except (http.client.InvalidURL, UnicodeError) as problem:
            line.connection.close()
            raise HostError(f"{shown(url)!r} is no address", reason="registry-failed") from problem
        except (OSError, http.client.HTTPException) as problem:
            line.connection.close()
            raise _broken_off(origin, problem) from problem
        except BaseException:  # the body's own: what was promised will not come
            line.connection.close()
            raise
        return Reply(method, url, raw, line.buffers, partial(self._done, origin, line))

    def _line(self, origin: Origin) -> _Line:
        with self._lock:
            idle = self._idle.get(origin, [])
            while idle:
                kept = idle.pop()
                if kept.usable:
                    return kept
                kept.connection.close()
        return self._connected(origin)

    def _connected(self, origin: Origin) -> _Line:
        proxy = proxy_for(*origin)
        line = self._new(origin, proxy)
        try:
            line.connection.connect()
        except (OSError, http.client.HTTPException) as problem:
            line.connection.close()
            raise _not_connected(origin, proxy, problem) from problem
        line.connection.sock.settimeout(self._limits.read)
        return line

    def _new(self, origin: Origin, proxy: Proxy | None) -> _Line:
        """A connection to be. A proxy is asked for the whole address of what is plain, for a tunnel to what is not."""
        host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        wait = self._limits.connect
        if origin.scheme != "https":
            return _Line(http.client.HTTPConnection(host, port, timeout=wait), proxy)
        made = http.client.HTTPSConnection(host, port, timeout=wait, context=self._context())
        if proxy:
            there = f"{origin.host}:{origin.port}"
            made.set_tunnel(origin.host, origin.port, headers={"Host": there, **proxy.headers})
        return _Line(made)

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                place = trust(self._ca)
                folder = os.path.isdir(place)  # noqa: PTH112
                self._tls = ssl.create_default_context(
                    capath=place if folder else None, cafile=None if folder else place
                )
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls

    def _done(self, origin: Origin, line: _Line, keep: bool) -> None:
        """Keep a connection for the next request, or close it."""
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if keep and line.whole and len(idle) < self._limits.connections:
                idle.append(line)
                return
        line.connection.close()


class Reply:
    """What came back. Its body is read once, by whoever wants it; then it is to be finished."""

    def __init__(
        self,
        method: str,
        url: str,
        raw: http.client.HTTPResponse,
        buffers: list[memoryview],
        done: Callable[[bool], None],
    ) -> None:
        self.method = method
        self.url = url
        self.status = raw.status
        self.reason = raw.reason
        self.headers = raw.headers
        self._raw = raw
        self._buffers = buffers
        self._done = done

    @property
    def place(self) -> str:
        """The address as it may be told: what was signed for this request alone stays out."""
        return shown(self.url)

    @property
    def following(self) -> str:
        """The address of the next page, "" on the last (distribution-spec, Listing Tags; RFC 8288)."""
        found = re.search(_NEXT, self.headers.get("Link", ""))
        return found[1] if found else ""

    def pieces(self, limit: int) -> Iterator[memoryview]:
        """The body as it was sent, at most `limit` bytes. A piece holds until the next but one is asked for,
        and none for longer than the reply, whose buffers are then the next one's.

        Raises Fault when the connection breaks off, HostError `registry-lied` for what is encoded.
        """
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise HostError(f"{self.place}: encoded, unasked", reason="registry-lied")
        while len(self._buffers) < 2:
            self._buffers.append(memoryview(bytearray(PIECE)))
        while limit > 0 and (got := self._read(self._buffers[0][:limit])):
            yield self._buffers[0][:got]
            limit -= got
            self._buffers.reverse()

    def read_all(self, limit: int) -> bytes:
        """The whole body. Raises HostError `registry-lied` when it is longer than `limit` bytes."""
        data = b"".join(map(bytes, self.pieces(limit + 1)))
        if len(data) > limit:
            raise HostError(f"{self.place}: more than {limit} bytes", reason="registry-lied")
        return data

    def finish(self) -> None:
        """Give the connection back for the next request, unless much of the body is still to come."""
        with suppress(OSError, http.client.HTTPException):
            if self.method == "HEAD" or (self._raw.length or 0) <= SMALL:
                self._raw.read(SMALL)
        self._end(self._raw.isclosed() and not self._raw.will_close)

    def close(self) -> None:
        """Be done with it, whatever is still to come; nothing after `finish`."""
        self._end(False)

    def _end(self, keep: bool) -> None:
        done, self._done = self._done, _nothing
        self._raw.close()
        done(keep)

    def _read(self, buffer: memoryview) -> int:
        try:
            got = self._raw.readinto(buffer)
        except (OSError, http.client.HTTPException) as problem:
            raise Fault(f"{self.place}: {_words(problem)}", reason="registry-broken-off") from problem
        if not got and self._raw.length:
            raise Fault(f"{self.place}: the body ends early", reason="registry-broken-off")
        return got


def trust(ca: Path | None) -> str:
    """The bundle, or folder, of certificates that count: the one given, the user's, the system's, Mozilla's.

    Raises HostError (`registry-tls`).
    """
    if ca and not ca.is_file():
        raise HostError(
            f"{ca}: no bundle of certificates", reason="registry-tls", hint="registry: {ca: FILE}"
        )
    said = [str(ca or ""), *(os.environ.get(name, "") for name in _BUNDLES)]
    system = ssl.get_default_verify_paths()
    found = [*said, system.cafile or "", system.capath or ""]
    if there := next((place for place in found if place and _holds_something(place)), ""):
        return there
    from requests.utils import DEFAULT_CA_BUNDLE_PATH  # a machine without certificates of its own

    return str(DEFAULT_CA_BUNDLE_PATH)


def _holds_something(place: str) -> bool:
    if os.path.isdir(place):  # noqa: PTH112 (OpenSSL says where as text)
        return any(os.scandir(place))
    return True


def _exchange(
    line: _Line, method: str, url: str, headers: Mapping[str, str], body: Body
) -> http.client.HTTPResponse:
    """Send and hear. A server that hangs up in the middle of a body may have said why before it did."""
    connection = line.connection
    connection.putrequest(method, _target(url, bool(line.proxy)), skip_accept_encoding=True)
    length = {"Content-Length": str(len(body))} if isinstance(body, bytes) and body else {}
    for name, value in {**length, **headers, **(line.proxy.headers if line.proxy else {})}.items():
        connection.putheader(name, value)
    if isinstance(body, bytes):
        connection.endheaders(body)
        return connection.getresponse()
    connection.endheaders()
    try:
        for piece in body:
            connection.send(piece)
    except (BrokenPipeError, ConnectionResetError):
        line.whole = False
    return connection.getresponse()


def _target(url: str, whole: bool) -> str:
    """What stands in the request's first line; what a Location left unquoted is quoted."""
    parts = urlsplit(url)
    text = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_SAFE)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{text}" if whole else text


def _broken_off(origin: Origin, problem: Exception) -> Fault:
    return Fault(f"{origin.host}:{origin.port}: {_words(problem)}", reason="registry-broken-off")


def _not_connected(origin: Origin, proxy: Proxy | None, problem: Exception) -> Fault | HostError:
    """What is wrong where no connection came to be."""
    if isinstance(problem, _PASSING):
        return _broken_off(origin, problem)
    if isinstance(problem, ssl.SSLError):
        return HostError(f"{origin.host}: {_words(problem)}", reason="registry-tls", hint=_TRUST)
    by = f" (by the proxy {proxy.host}:{proxy.port})" if proxy else ""
    what = f"{origin.host}:{origin.port}{by}: {_words(problem)}"
    refusal = re.match(_REFUSED, str(problem))
    if proxy and refusal and not refusal[1].startswith("5"):
        return HostError(what, reason="registry-proxy", hint="HTTPS_PROXY and NO_PROXY say who is asked")
    return Fault(what, reason="registry-unreachable", silent=not refusal)


def _words(problem: BaseException) -> str:
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


def _hang_up(idle: Mapping[Origin, list[_Line]]) -> None:
    for line in (line for lines in idle.values() for line in lines):
        line.connection.close()


def _nothing(_: bool) -> None:
    """A reply is done with once."""
