"""Where a named mirror is: configuration of this machine, never identity.

A uri such as `debian:pool/main/…` names a file relative to a mirror. Which host serves it is asked of,
in this order, the command line, `KBUILD_MIRROR_NAME` of the environment, the settings (the user's, then
`BUILD.yaml`), the machine's own package sources, and the public default. Each may name several, which are
asked one after the other. Nothing of the answer reaches a key or a lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kairosbuild.core.errors import InputError, nearest
from kairosbuild.sources import machine

DEFAULTS = {
    "debian": "http://ftp.debian.org/debian",
    "debian-security": "http://ftp.debian.org/debian-security",
    "ubuntu": "https://mirrors.edge.kernel.org/ubuntu",
    "ubuntu-security": "https://mirrors.kernel.org/ubuntu",
    "ubuntu-ports": "http://ports.ubuntu.com/ubuntu-ports",
    "fedora": "https://dl.fedoraproject.org/pub/fedora/linux/releases",
    "fedora-updates": "https://dl.fedoraproject.org/pub/fedora/linux/updates",
    "rocky": "https://dl.rockylinux.org/pub/rocky",
    "almalinux": "https://repo.almalinux.org/almalinux",
    "opensuse": "https://download.opensuse.org",
    "alpine": "https://dl-cdn.alpinelinux.org/alpine",
    "arch": "https://geo.mirror.pkgbuild.com",
}
"""A public mirror of each name, for a machine that was told of none: the distribution's own, for Ubuntu kernel.org's,
which carry the security pockets too. What follows in a uri:

`debian:`, `ubuntu:` `dists/…` and `pool/…`; `ubuntu-ports` serves arm64
`fedora:43/Everything/x86_64/os/…`, `fedora-updates:43/Everything/x86_64/…`
`rocky:9/BaseOS/x86_64/os/…`, `almalinux:9/BaseOS/x86_64/os/…`
`opensuse:tumbleweed/repo/oss/…`, `opensuse:distribution/leap/15.6/repo/oss/…`, `opensuse:update/leap/15.6/oss/…`
`alpine:v3.22/main/x86_64/…`
`arch:core/os/x86_64/…`
"""
_APT = ("debian", "ubuntu")
_ADDRESS = ("http://", "https://", "file:")
_SCHEME = re.compile(r"([a-z][a-z0-9-]*):")


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The address of each named mirror, without a slash at its end; several with a space between, in their order."""

    places: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULTS))

    def serves(self, uri: str) -> bool:
        """Whether this uri is relative to a mirror."""
        match = _SCHEME.match(uri)
        return match is not None and match[1] in self.places

    def of_apt(self, uri: str) -> bool:
        """Whether this uri is relative to a mirror of a distribution whose client is apt."""
        return self.serves(uri) and uri.startswith(_APT)

    def located(self, uri: str) -> tuple[str, ...]:
        """The addresses of a uri in the order to ask; one that is relative to no mirror is its own."""
        name, _, path = uri.partition(":")
        if not self.serves(uri):
            return (uri,)
        return tuple(f"{place}/{path}" for place in self.places[name].split())


def find(
    given: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    settings: Iterable[Mapping[str, str]] = (),
    etc: Path = machine.ETC,
) -> Mirrors:
    """The mirrors of this machine. `given` comes from the command line; `settings` nearest first.

    Raises InputError (`mirror-address`, `mirror-unknown`) for what a person wrote.
    """
    places = DEFAULTS | machine.mirrors(etc)
    for more in reversed([given or {}, _of_environ(environ or {}), *settings]):
        for name, place in more.items():
            places[name] = _checked(name, place)
    return Mirrors(
        {name: " ".join(one.rstrip("/") for one in place.split()) for name, place in places.items()}
    )


def _of_environ(environ: Mapping[str, str]) -> dict[str, str]:
    prefix = "KBUILD_MIRROR_"
    return {
        key.removeprefix(prefix).lower().replace("_", "-"): value
        for key, value in environ.items()
        if key.startswith(prefix) and value
    }


def _checked(name: str, place: str) -> str:
    if name not in DEFAULTS:
        raise InputError(
            f"there is no mirror {name!r} to set", reason="mirror-unknown", hint=nearest(name, DEFAULTS)
        )
    if not place.split() or not all(one.startswith(_ADDRESS) for one in place.split()):
        raise InputError(
            f"the mirror {name} is at {place!r}, which is no address",
            reason="mirror-address",
            hint=f"write it as {DEFAULTS[name]}",
        )
    return place
