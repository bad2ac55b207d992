"""The caches that are shared with other machines: which ones were named, on the command line or in settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.recipe import places

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome
    from kairosbuild.registry.cache import SharedCache
    from kairosbuild.registry.known import Known


@dataclass(frozen=True, slots=True)
class Sharing:
    """`readers` are asked for results, `writers` are given them; one repository may be both."""

    readers: Sequence[SharedCache] = ()
    writers: Sequence[SharedCache] = ()

    def origin(self, host: str) -> str:
        """A repository on this host that blobs of results may be mounted from, or ""."""
        for cache in (*self.writers, *self.readers):
            at, _, repository = cache.target.name.partition("/")
            if at == host:
                return repository
        return ""

    def finish(self) -> None:
        """Wait until everything is there."""
        for cache in self.writers:
            cache.finish()

    def close(self, *, abandon: bool) -> None:
        """The run is over."""
        for cache in self.writers:
            cache.abandon() if abandon else cache.finish()


def sharing(parts: Parts) -> Sharing:
    """The caches of this run; none when it is to reach no network."""
    said = parts.arguments
    if getattr(said, "offline", False) or not hasattr(said, "cache_from"):
        return Sharing()
    if not (said.cache_from or said.cache_to or may_be_set(parts)):
        return Sharing()
    settings = parts.workspace.cache
    sources, to = tuple(said.cache_from) or settings.from_, said.cache_to or settings.to
    made = {name: _open(parts, name, writes=name == to) for name in dict.fromkeys((*sources, to)) if name}
    return Sharing([made[name] for name in sources], [made[to]] if to else [])


def may_be_set(parts: Parts) -> bool:
    """Whether a settings file could name a cache; only then is one read, since YAML is slow."""
    recipe = getattr(parts.arguments, "recipe", None)
    return places.plain_cache(os.getcwd(), recipe, places.user_file(os.environ)) is None


def share(parts: Parts, outcome: Outcome) -> None:
    """Put there what this machine had already built before anybody asked for it to be shared."""
    said = parts.arguments
    to = said.cache_to or (parts.workspace.cache.to if may_be_set(parts) else "")
    if not to or said.offline:
        return
    known = _known(parts, to)
    unknown = [
        key for name in outcome.names() if outcome.has(name) and (key := outcome.key(name)) not in known
    ]
    if unknown:
        for record in parts.store.actions.get_many(unknown).values():
            parts.sharing.writers[0].put(record)


def _open(parts: Parts, name: str, *, writes: bool) -> SharedCache:
    from kairosbuild.registry.cache import SharedCache

    said, settings = parts.arguments, parts.workspace.cache
    key = said.cache_sign or settings.sign
    return SharedCache(
        parts.cache_target(name),
        parts.store.cas,
        parts.events,
        known=_known(parts, name),
        sign=_signer(key) if key and writes else None,
        trust=_trust(tuple(said.cache_trust) or settings.trust),
    )


def _signer(key: str) -> Callable[[bytes], bytes]:
    from kairosbuild.keys import keys

    return keys.signer(key).sign


def _trust(names: Sequence[str]) -> Callable[[bytes, bytes], bool] | None:
    if not names:
        return None
    from kairosbuild.keys import keys

    trusted = [keys.verifier(name) for name in names]
    return lambda data, signature: any(key.verifies(data, signature) for key in trusted)


def _known(parts: Parts, name: str) -> Known:
    from kairosbuild.registry.known import Known

    return Known(Path(parts.store_root(), "shared"), name)
