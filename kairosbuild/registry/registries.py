"""From what a person writes to a target: registries by host, layouts by folder, connections shared."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.digest import Blob, is_digest
from kairosbuild.core.errors import InputError
from kairosbuild.registry.layout import LayoutTarget
from kairosbuild.registry.target import Progress, Target, silent

if TYPE_CHECKING:
    from kairosbuild.registry.client import Client
    from kairosbuild.registry.reference import Reference
    from kairosbuild.registry.retry import Limits

_LAYOUT = ("oci:", "oci-layout:")


class Registries:
    """Opens targets, one client for each host.

    `insecure` names hosts spoken to in plain HTTP, as loopback is unless `plain_loopback` is false;
    `ca` is a bundle of certificates to trust instead of the system's.
    """

    def __init__(
        self,
        *,
        insecure: Collection[str] = (),
        plain_loopback: bool = True,
        ca: Path | None = None,
        limits: Limits | None = None,
    ) -> None:
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
        prefix = next((p for p in _LAYOUT if text.startswith(p) and not text.startswith("oci://")), None)
        if prefix:
            folder, version = _split_layout(text, text.removeprefix(prefix))
            return LayoutTarget(folder), version
        from kairosbuild.registry.reference import parse  # HTTP is slow to import; a layout does without
        from kairosbuild.registry.remote import RemoteTarget

        where = parse(text)
        return RemoteTarget(where, self._client(where)), where.digest or where.tag

    def fetch(
        self,
        uri: str,
        into: Path,
        *,
        digest: str | None = None,
        size: int | None = None,
        progress: Progress = silent,
    ) -> Blob:
        """A material by its uri into a file: `fetch.fetch` on what `open` gives."""
        from kairosbuild.registry.fetch import fetch

        target, version = self.open(uri)
        return fetch(target, version, into, digest=digest, size=size, progress=progress)

    def _client(self, where: Reference) -> Client:
        from kairosbuild.registry.client import Client

        with self._lock:
            if where.endpoint not in self._clients:
                said = bool({where.host, where.endpoint} & self._insecure)
                plain = True if said else None if self._plain_loopback else False
                self._clients[where.endpoint] = Client(
                    where.endpoint, insecure=plain, ca=self._ca, limits=self._limits
                )
            return self._clients[where.endpoint]


def _split_layout(text: str, rest: str) -> tuple[Path, str]:
    from kairosbuild.registry.reference import is_tag

    rest, at, digest = rest.partition("@sha256:")
    folder, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        folder, tag = rest, ""
    if not folder or (tag and not is_tag(tag)) or (at and not is_digest(f"sha256:{digest}")):
        raise InputError(f"{text!r} names no layout", reason="bad-reference", hint="oci:DIR, oci:DIR:TAG")
    return Path(folder), f"sha256:{digest}" if at else tag
