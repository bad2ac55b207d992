"""From what a person writes to a target: registries by host, layouts by folder, connections shared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kairosbuild.core.digest import Blob, is_digest
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry.target import Progress, Target, silent

if TYPE_CHECKING:
    from kairosbuild.registry.client import Client
    from kairosbuild.registry.configured import Configured
    from kairosbuild.registry.reference import Reference
    from kairosbuild.registry.retry import Limits

Found = TypeVar("Found")
_LAYOUT = ("oci:", "oci-layout:")


class Registries:
    """Opens targets, one client for each host.

    `insecure` names hosts spoken to in plain HTTP, as loopback is unless `plain_loopback` is false;
    `ca` is a bundle of certificates to trust instead of the system's. `configured` gives the mirrors that
    the machine is set to, when they are first needed.
    """

    def __init__(
        self,
        *,
        insecure: Collection[str] = (),
        plain_loopback: bool = True,
        ca: Path | None = None,
        limits: Limits | None = None,
        configured: Callable[[], Configured] | None = None,
    ) -> None:
        self._configured = configured
        self._settings: Configured | None = None
        self._plain_loopback = plain_loopback
        self._insecure = frozenset(insecure)
        self._ca = ca
        self._limits = limits
        self._lock = threading.Lock()
        self._clients: dict[str, Client] = {}

    def open(self, text: str) -> tuple[Target, str]:
        """A target and the tag or digest said with it ("" for none).

        `HOST/REPOSITORY[:TAG][@DIGEST]`, with `oci://` before it or not, is a registry's;
        `oci:DIR[:TAG][@DIGEST]` (or `oci-layout:`) a layout on disk. Raises InputError `bad-reference`.
        """
        if prefix := _layout_prefix(text):
            from kairosbuild.registry.layout import LayoutTarget

            folder, version = _split_layout(text, text.removeprefix(prefix))
            return LayoutTarget(folder), version
        from kairosbuild.registry.reference import parse  # HTTP is slow to import; a layout does without

        where = parse(text)
        return self._remote(where, self._set().insecure(where))

    def fetch(
        self,
        uri: str,
        into: Path,
        *,
        digest: str | None = None,
        size: int | None = None,
        progress: Progress = silent,
    ) -> Blob:
        """A material by its uri into a file: `fetch.fetch` from the first place that serves it.

        What is in a registry is asked of its mirrors in order, then of itself, whose failure is the one told.
        """
        from kairosbuild.registry.fetch import fetch

        def get(target: Target, version: str) -> Blob:
            return fetch(target, version, into, digest=digest, size=size, progress=progress)

        return self.first(uri, get)

    def first(
        self,
        text: str,
        do: Callable[[Target, str], Found],
        passing: tuple[type[Exception], ...] = (HostError,),
    ) -> Found:
        """Read something from the first place that has it: the mirrors in order, then where the text says.

        A mirror's error of one of these sorts sends to the next place; that of the last is the one told.
        """
        *mirrors, last = self._places(text)
        for open_it in mirrors:
            with suppress(*passing):
                return do(*open_it())
        return do(*last())

    def _places(self, uri: str) -> list[Callable[[], tuple[Target, str]]]:
        """How to open each place that may have it."""
        if _layout_prefix(uri):
            return [lambda: self.open(uri)]
        from kairosbuild.registry.reference import parse

        return [
            partial(self._remote, one.reference, one.insecure) for one in self._set().endpoints(parse(uri))
        ]

    def _remote(self, where: Reference, insecure: bool = False) -> tuple[Target, str]:
        from kairosbuild.registry.remote import RemoteTarget

        return RemoteTarget(where, self._client(where, insecure)), where.digest or where.tag

    def _set(self) -> Configured:
        """What the machine is set to."""
        if self._settings is None:
            from kairosbuild.registry.configured import Configured

            self._settings = self._configured() if self._configured else Configured()
        return self._settings

    def _client(self, where: Reference, insecure: bool) -> Client:
        from kairosbuild.registry.client import Client

        with self._lock:
            if where.endpoint not in self._clients:
                said = insecure or bool({where.host, where.endpoint} & self._insecure)
                plain = True if said else None if self._plain_loopback else False
                self._clients[where.endpoint] = Client(
                    where.endpoint, insecure=plain, ca=self._ca, limits=self._limits
                )
            return self._clients[where.endpoint]


def _layout_prefix(text: str) -> str:
    """What says that this is a layout on disk, or ""."""
    return next((p for p in _LAYOUT if text.startswith(p) and not text.startswith("oci://")), "")


def _split_layout(text: str, rest: str) -> tuple[Path, str]:
    from kairosbuild.registry.reference import is_tag

    rest, at, digest = rest.partition("@sha256:")
    folder, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        folder, tag = rest, ""
    if not folder or (tag and not is_tag(tag)) or (at and not is_digest(f"sha256:{digest}")):
        raise InputError(f"{text!r} names no layout", reason="bad-reference", hint="oci:DIR, oci:DIR:TAG")
    return Path(folder), f"sha256:{digest}" if at else tag
