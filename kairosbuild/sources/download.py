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
from collections.abc import Iterable, Sequence
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
from kairosbuild.core.errors import HostError
from kairosbuild.core.events import Events
from kairosbuild.sources import apthelper
from kairosbuild.sources.mirrors import Mirrors

LIMIT = 8 << 30  # bytes, of a file whose size nobody declared
_PASSING = (408, 429, 500, 502, 503, 504)
_PATIENCE = 8.0  # seconds, the longest pause between two attempts
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
    """Gets files. `attempts` counts the first one; `timeout` is seconds without a byte."""

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

        Raises HostError: `mirror-down`, `file-gone`, `truncated`, `wrong-digest`, `too-large`,
        `download-failed`, `cancelled`; of several failures the first, with their number.
        """
        once = list({w.uri: w for w in wanted}.values())
        through_apt = [w for w in once if self._is_for_apt(w)]
        direct = [w for w in once if not self._is_for_apt(w)]
        folder = self.sink.tmp()
        try:
            return self._through_apt(through_apt, folder) | self._direct(direct, folder)
        finally:
            _remove(folder)

    def _is_for_apt(self, wanted: Wanted) -> bool:
        return self.helper is not None and self.mirrors.of_apt(wanted.uri) and _remote(self._place(wanted))

    def _place(self, wanted: Wanted) -> str:
        return self.mirrors.locate(wanted.uri)

    def _direct(self, wanted: Sequence[Wanted], folder: Path) -> dict[str, Blob]:
        with ThreadPoolExecutor(max_workers=max(1, min(self.jobs, len(wanted)))) as pool:
            running = [
                (w, pool.submit(self._one, w, folder / f"direct-{number}")) for number, w in enumerate(wanted)
            ]
            failures = [error for _, job in running if (error := job.exception())]
        _raise_first(failures)
        return {w.uri: job.result() for w, job in running}

    def _one(self, wanted: Wanted, into: Path) -> Blob:
        self.events.emit("transfer-started", wanted.uri, size=wanted.size or 0)
        started = monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                with into.open("wb") as out:
                    _stream(self._place(wanted), wanted, out, self)
                break
            except _PassingError as error:
                if attempt == self.attempts:
                    raise error.final from None
                self._pause(attempt, error.after)
        blob = self.sink.put_file(into)
        self.events.emit(
            "transfer-finished", wanted.uri, bytes=blob.size, milliseconds=int(1000 * (monotonic() - started))
        )
        return blob

    def _pause(self, attempt: int, after: float) -> None:
        pause = min(_PATIENCE, max(after, 0.25 * 2**attempt * random.uniform(0.5, 1.5)))  # noqa: S311 - jitter
        if self.cancelled.wait(pause):
            raise _cancelled()

    def _through_apt(self, wanted: Sequence[Wanted], folder: Path) -> dict[str, Blob]:
        found: dict[str, Blob] = {}
        if not wanted or self.helper is None:
            return found
        jobs = [
            apthelper.Job(self._place(w), folder / f"apt-{number}", w.digest, w.size)
            for number, w in enumerate(wanted)
        ]
        for w in wanted:
            self.events.emit("transfer-started", w.uri, size=w.size or 0)
        complaints = apthelper.run(self.helper, jobs, self.timeout, self.attempts - 1, self.cancelled)
        if self.cancelled.is_set():
            raise _cancelled()
        failures: list[BaseException] = []
        for w, job in zip(wanted, jobs, strict=True):
            if job.address in complaints or not job.into.exists():
                failures.append(_apt_failure(w, job.address, complaints.get(job.address, "")))
                continue
            blob = self.sink.put_file(job.into)
            if w.digest not in ("", blob.digest) or w.size not in (None, blob.size):
                failures.append(_wrong(w, job.address, blob))
            found[w.uri] = blob
            self.events.emit("transfer-finished", w.uri, bytes=blob.size)
        _raise_first(failures)
        return found


class _PassingError(Exception):
    """A failure that another attempt may not meet; `final` is what to raise when none is left."""

    def __init__(self, final: HostError, after: float = 0.0) -> None:
        super().__init__(str(final))
        self.final = final
        self.after = after


def shown(address: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _stream(address: str, wanted: Wanted, out: BinaryIO, loader: Downloader) -> None:
    limit = LIMIT if wanted.size is None else wanted.size
    sha, size = hashlib.sha256(), 0
    try:
        with _open(address, loader.timeout) as source:
            expected = source.headers.get("Content-Length") if hasattr(source, "headers") else None
            while chunk := source.read(CHUNK):
                if loader.cancelled.is_set():
                    raise _cancelled()
                size += len(chunk)
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
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
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
