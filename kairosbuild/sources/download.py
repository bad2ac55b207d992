"""Files from outside, into the store: verified while they stream, in parallel, retried within bounds.

What is relative to a mirror of Debian or Ubuntu goes through their own client where the host has it
(see `apthelper`), since that knows the machine's proxies and credentials; the rest through urllib, which
honours `http_proxy`.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from kairosbuild.core.digest import CHUNK, Blob
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Events
from kairosbuild.sources import apthelper
from kairosbuild.sources.mirrors import Mirrors

LIMIT = 8 << 30  # bytes, of a file whose size nobody declared
_PASSING = (408, 429, 500, 502, 503, 504)
_PATIENCE = 8.0  # seconds, the longest pause between two attempts
_SLOWEST = 1024  # bytes a second: who sends less for the whole timeout has stalled
_STALLS = 2  # attempts at an address that stalls: each costs the whole timeout
_GONE_HINT = "the mirror no longer has it; resolve anew with: kbuild lock RECIPE --update NODE"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file by its uri, and what is known of it before: its digest and its size in bytes."""

    uri: str
    digest: str = ""
    size: int | None = None


class Sink(Protocol):
    """Where files end up; the store's CAS is one."""

    def tmp(self) -> Path:
        """A fresh folder on the same filesystem."""

    def put_file(self, path: Path) -> Blob:
        """Take a file over by moving it."""


@dataclass(slots=True)
class Downloader:
    """Gets files. `attempts` counts the first one; `timeout` is seconds with hardly a byte.

    What one mirror cannot deliver the next one of its name is asked for.
    """

    sink: Sink
    mirrors: Mirrors
    jobs: int = 8
    attempts: int = 4
    timeout: float = 30.0
    helper: Path | None = field(default_factory=apthelper.find)
    events: Events = field(default_factory=Events)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def get(self, wanted: Iterable[Wanted]) -> dict[str, Blob]:
        """Fetch each file once; the blobs by uri.

        Raises HostError: `mirror-down`, `mirror-slow`, `file-gone`, `truncated`, `wrong-digest`, `too-large`,
        `download-failed`, `cancelled`; of several failures the first, with their number.
        """
        once = list({w.uri: w for w in wanted}.values())
        through_apt = [w for w in once if self._is_for_apt(w)]
        direct = [_Job(w, self._places(w)) for w in once if not self._is_for_apt(w)]
        folder = self.sink.tmp()
        try:
            found, again = self._through_apt(through_apt, folder)
            return found | self._direct([*direct, *again], folder)
        finally:
            _remove(folder)

    def _is_for_apt(self, wanted: Wanted) -> bool:
        return (
            self.helper is not None and self.mirrors.of_apt(wanted.uri) and _remote(self._places(wanted)[0])
        )

    def _places(self, wanted: Wanted) -> tuple[str, ...]:
        return self.mirrors.located(wanted.uri)

    def _direct(self, jobs: Sequence[_Job], folder: Path) -> dict[str, Blob]:
        with ThreadPoolExecutor(max_workers=max(1, min(self.jobs, len(jobs)))) as pool:
            running = [
                (job, pool.submit(self._one, job, folder / f"direct-{number}"))
                for number, job in enumerate(jobs)
            ]
            failures = [error for _, done in running if (error := done.exception())]
        _raise_first(failures)
        return {job.wanted.uri: done.result() for job, done in running}

    def _one(self, job: _Job, into: Path) -> Blob:
        wanted = job.wanted
        self.events.emit("transfer-started", wanted.uri, size=wanted.size or 0)
        started = monotonic()
        for number, address in enumerate(job.addresses, 1):
            try:
                self._from(address, wanted, into)
                break
            except HostError as error:
                if number == len(job.addresses) or error.reason == "cancelled":
                    raise
                self._elsewhere(wanted, error)
        blob = self.sink.put_file(into)
        self.events.emit(
            "transfer-finished", wanted.uri, bytes=blob.size, milliseconds=int(1000 * (monotonic() - started))
        )
        return blob

    def _from(self, address: str, wanted: Wanted, into: Path) -> None:
        """One mirror, as often as it is worth it."""
        for attempt in range(1, self.attempts + 1):
            try:
                with into.open("wb") as out:
                    _stream(address, wanted, out, self)
                return
            except _PassingError as error:
                if attempt == min(self.attempts, error.worth):
                    raise error.final from None
                self._pause(attempt, error.after)

    def _elsewhere(self, wanted: Wanted, error: HostError) -> None:
        self.events.emit("note", wanted.uri, message=f"{error.message}; the next mirror is asked")

    def _pause(self, attempt: int, after: float) -> None:
        pause = min(_PATIENCE, max(after, 0.25 * 2**attempt * random.uniform(0.5, 1.5)))  # noqa: S311 - jitter
        if self.cancelled.wait(pause):
            raise _cancelled()

    def _through_apt(self, wanted: Sequence[Wanted], folder: Path) -> tuple[dict[str, Blob], list[_Job]]:
        """What the client got, and what the first mirror did not deliver and others may."""
        found: dict[str, Blob] = {}
        again: list[_Job] = []
        if not wanted or self.helper is None:
            return found, again
        jobs = [
            apthelper.Job(self._places(w)[0], folder / f"apt-{number}", w.digest, w.size)
            for number, w in enumerate(wanted)
        ]
        for w in wanted:
            self.events.emit("transfer-started", w.uri, size=w.size or 0)
        pace = Pace(_STALLS * self.timeout)
        complaints = apthelper.run(
            self.helper, jobs, self.timeout, self.attempts - 1, self.cancelled, pace.slow
        )
        if self.cancelled.is_set():
            raise _cancelled()
        failures: list[BaseException] = []
        for w, job in zip(wanted, jobs, strict=True):
            try:
                found[w.uri] = self._taken(w, job, complaints.get(job.address))
            except HostError as error:
                if others := self._places(w)[1:]:
                    self._elsewhere(w, error)
                    again.append(_Job(w, others))
                else:
                    failures.append(error)
        _raise_first(failures)
        return found, again

    def _taken(self, wanted: Wanted, job: apthelper.Job, complaint: str | None) -> Blob:
        """The file the client got."""
        if complaint is not None or not job.into.exists():
            raise _apt_failure(wanted, job.address, complaint or "")
        blob = self.sink.put_file(job.into)
        if wanted.digest not in ("", blob.digest) or wanted.size not in (None, blob.size):
            raise _wrong(wanted, job.address, blob)
        self.events.emit("transfer-finished", wanted.uri, bytes=blob.size)
        return blob


@dataclass(frozen=True, slots=True)
class _Job:
    """A file and the addresses to ask for it, in order."""

    wanted: Wanted
    addresses: tuple[str, ...]


class Pace:
    """Tells whether so little came in so long a time that nothing more is to be hoped for."""

    def __init__(self, timeout: float) -> None:
        self._timeout, self._since, self._size = timeout, monotonic(), 0

    def slow(self, size: int) -> bool:
        """Whether it stalls, now that there are this many bytes."""
        if size - self._size >= _SLOWEST * self._timeout:
            self._since, self._size = monotonic(), size
        return monotonic() - self._since > self._timeout


class _PassingError(Exception):
    """A failure that another attempt may not meet; `final` is what to raise when none is left."""

    def __init__(self, final: HostError, after: float = 0.0, worth: int = 1 << 30) -> None:
        super().__init__(str(final))
        self.final = final
        self.after = after
        self.worth = worth  # how many attempts may be made in all


def timeout_of(environ: Mapping[str, str]) -> float:
    """How long a person wants to wait for a mirror that stalls. Raises InputError (`fetch-timeout`)."""
    said = environ.get("KBUILD_FETCH_TIMEOUT") or "30"
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", said) or not float(said):
        raise InputError(
            f"KBUILD_FETCH_TIMEOUT is {said!r}", reason="fetch-timeout", hint="write seconds, as 30"
        )
    return float(said)


def shown(address: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _stream(address: str, wanted: Wanted, out: BinaryIO, loader: Downloader) -> None:
    limit = LIMIT if wanted.size is None else wanted.size
    sha, size, pace = hashlib.sha256(), 0, Pace(loader.timeout)
    try:
        with _open(address, loader.timeout) as source:
            expected = source.headers.get("Content-Length") if hasattr(source, "headers") else None
            read = getattr(source, "read1", source.read)  # what there is: a drip has to be seen
            while chunk := read(CHUNK):
                if loader.cancelled.is_set():
                    raise _cancelled()
                size += len(chunk)
                if pace.slow(size) and size < limit:
                    raise TimeoutError
                if size > limit:
                    raise _too_large(address, limit)
                sha.update(chunk)
                out.write(chunk)
                loader.events.emit("transfer-progress", wanted.uri, bytes=size)
    except HTTPError as error:
        with error:  # it holds the connection
            raise _of_status(address, error) from None
    except FileNotFoundError:
        raise _gone(address) from None
    except TimeoutError:
        raise _PassingError(_slow(address), worth=_STALLS) from None
    except (URLError, HTTPException, ConnectionError) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise _PassingError(_slow(address), worth=_STALLS) from None
        raise _PassingError(_short(address, size) if size else _down(address, str(error))) from None
    if expected and expected.isdecimal() and size < int(expected):
        raise _PassingError(_short(address, size))
    if wanted.size is not None and size < wanted.size:
        raise _short(address, size)
    got = Blob("sha256:" + sha.hexdigest(), size)
    if wanted.digest not in ("", got.digest) or wanted.size not in (None, got.size):
        raise _wrong(wanted, address, got)


def _open(address: str, timeout: float) -> Any:
    if not _remote(address):
        return Path(unquote(urlsplit(address).path)).open("rb")
    request = Request(address, headers={"User-Agent": "kairosbuild", "Accept-Encoding": "identity"})  # noqa: S310
    return urlopen(request, timeout=timeout)  # noqa: S310 - http and https only, see _remote


def _remote(address: str) -> bool:
    scheme = urlsplit(address).scheme
    if scheme not in ("http", "https", "file"):
        raise HostError(
            f"{shown(address)} is at no kind of address that can be fetched",
            reason="download-failed",
            hint="use http, https or file",
        )
    return scheme != "file"


def _of_status(address: str, error: HTTPError) -> Exception:
    if error.code in (404, 410):
        return _gone(address)
    failure = _failed(address, f"{error.code} {error.reason}")
    if error.code not in _PASSING:
        return failure
    after = error.headers.get("Retry-After") or ""
    down = _down(address, f"{error.code} {error.reason}")
    return _PassingError(down, float(after) if after.isdecimal() else 0.0)


def _apt_failure(wanted: Wanted, address: str, complaint: str) -> HostError:
    text = complaint.lower()
    if re.match(r"(404|410)\b", text) or "no such file" in text or "file not found" in text:
        return _gone(address)
    if "timed out" in text or apthelper.STALLED in text:
        return _slow(address)
    if "hash sum mismatch" in text:
        return _wrong(wanted, address, None)
    if match := re.search(r"unexpected size \((\d+)", text):
        size, limit = int(match[1]), LIMIT if wanted.size is None else wanted.size
        return _too_large(address, limit) if size > limit else _short(address, size)
    if "connection closed" in text or "undetermined error" in text or "reading from server" in text:
        return _short(address, None)
    return _down(address, complaint or "no answer")


def _down(address: str, why: str) -> HostError:
    why = why.removeprefix("<urlopen error ").removesuffix(">")
    return HostError(
        f"{shown(address)} could not be fetched: {why}",
        reason="mirror-down",
        hint="check the network, http_proxy, or name another mirror: --mirror NAME=URL",
    )


def _slow(address: str) -> HostError:
    return HostError(
        f"{shown(address)} could not be fetched: the mirror stalls",
        reason="mirror-slow",
        hint="try again, or name more mirrors: --mirror 'NAME=URL URL'; KBUILD_FETCH_TIMEOUT=SECONDS waits longer",
    )


def _gone(address: str) -> HostError:
    return HostError(f"{shown(address)} does not exist", reason="file-gone", hint=_GONE_HINT)


def _short(address: str, size: int | None) -> HostError:
    after = "" if size is None else f" after {size} bytes"
    hint = "try again, or another mirror"
    return HostError(f"{shown(address)} broke off{after}", reason="truncated", hint=hint)


def _too_large(address: str, limit: int) -> HostError:
    return HostError(f"{shown(address)} has more than the {limit} bytes it may have", reason="too-large")


def _wrong(wanted: Wanted, address: str, got: Blob | None) -> HostError:
    found = f"{got.digest} ({got.size} bytes)" if got else "something else"
    size = "" if wanted.size is None else f" ({wanted.size} bytes)"
    return HostError(
        f"{shown(address)} is {found}, not {wanted.digest or 'what was declared'}{size}",
        reason="wrong-digest",
        hint="the file changed after it was locked, or something on the way to it changes it",
    )


def _failed(address: str, why: str) -> HostError:
    return HostError(f"{shown(address)} could not be fetched: {why}", reason="download-failed")


def _cancelled() -> HostError:
    return HostError("the download was interrupted", reason="cancelled")


def _raise_first(failures: Sequence[BaseException]) -> None:
    if not failures:
        return
    first = failures[0]
    if len(failures) > 1 and isinstance(first, HostError):
        more = f"{first.message} (and {len(failures) - 1} more)"
        raise HostError(more, reason=first.reason, hint=first.hint)
    raise first


def _remove(folder: Path) -> None:
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
