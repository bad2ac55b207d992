"""Where a named mirror is: configuration of this machine, never identity.

A uri such as `debian:pool/main/…` names a file relative to a mirror. Which host serves it is asked of,
in this order, the command line, `KBUILD_MIRROR_NAME` of the environment, the settings (the user's, then
`BUILD.yaml`), the machine's own apt sources, and the public default. Nothing of the answer reaches a key
or a lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kairosbuild.core.errors import InputError, nearest

DEFAULTS = {
    "debian": "http://deb.debian.org/debian",
    "debian-security": "http://security.debian.org/debian-security",
}
APT = Path("/etc/apt")
_RELEASES = {
    "stable", "oldstable", "oldoldstable", "testing", "unstable", "sid", "experimental",
    "buster", "bullseye", "bookworm", "trixie", "forky", "duke",
}  # fmt: skip
_LINE = re.compile(r"\s*deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)")
_SCHEME = re.compile(r"([a-z][a-z0-9-]*):")


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The address of each named mirror, without a slash at its end."""

    places: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULTS))

    def serves(self, uri: str) -> bool:
        """Whether this uri is relative to a mirror."""
        match = _SCHEME.match(uri)
        return match is not None and match[1] in self.places

    def locate(self, uri: str) -> str:
        """The address to ask for a uri; one that is relative to no mirror is its own."""
        name, _, path = uri.partition(":")
        return f"{self.places[name]}/{path}" if self.serves(uri) else uri


@dataclass(frozen=True, slots=True)
class AptSource:
    """One `deb` line or stanza: where, which suites, which components, and what it is signed by."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def find(
    given: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    settings: Iterable[Mapping[str, str]] = (),
    apt: Path = APT,
) -> Mirrors:
    """The mirrors of this machine. `given` comes from the command line; `settings` nearest first.

    Raises InputError (`mirror-address`, `mirror-unknown`) for what a person wrote.
    """
    places = DEFAULTS | of_apt(apt_sources(apt))
    for more in reversed([given or {}, _of_environ(environ or {}), *settings]):
        for name, place in more.items():
            places[name] = _checked(name, place)
    return Mirrors({name: place.rstrip("/") for name, place in places.items()})


def of_apt(sources: Iterable[AptSource]) -> dict[str, str]:
    """The Debian archive and its security archive among these sources."""
    found: dict[str, str] = {}
    for source in sorted(sources, key=lambda s: not _surely_debian(s)):
        name = _archive(source)
        if name:
            found.setdefault(name, source.uri)
    return found


def apt_sources(apt: Path) -> list[AptSource]:
    """Every enabled source of binary packages in `sources.list` and `sources.list.d`, in apt's order."""
    files = [apt / "sources.list"]
    if (apt / "sources.list.d").is_dir():
        files += sorted((apt / "sources.list.d").iterdir())
    found: list[AptSource] = []
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        if file.suffix == ".sources":
            found += _deb822(text)
        elif file.suffix == ".list":
            found += filter(None, map(_one_line, text.splitlines()))
    return [s for s in map(_resolved, found) if s.uri.startswith(("http://", "https://", "file:"))]


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
    if not place.startswith(("http://", "https://", "file:")):
        raise InputError(
            f"the mirror {name} is at {place!r}, which is no address",
            reason="mirror-address",
            hint=f"write it as {DEFAULTS[name]}",
        )
    return place


def _archive(source: AptSource) -> str:
    """Which mirror of ours a source is: Debian's release names in a component that only Debian has."""
    if "main" not in source.components and "updates/main" not in source.components:
        return ""
    for suite in source.suites:
        release, _, pocket = suite.replace("/", "-").partition("-")
        if release in _RELEASES:
            security = pocket.startswith("security") or (pocket == "updates" and "/" in suite)
            return "debian-security" if security else "debian"
    return ""


def _surely_debian(source: AptSource) -> bool:
    """Others use Debian's suite names too; what says whose keyring it is signed by comes first."""
    return "debian-archive" in source.signed_by or any(s.endswith("-updates") for s in source.suites)


def _deb822(text: str) -> Iterator[AptSource]:
    plain = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", plain):
        values: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                values[last] = f"{values.get(last, '')} {line.strip()}"
            else:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                values[last] = value.strip()
        off = values.get("enabled", "yes").lower() in ("no", "false", "0", "off", "disable")
        if "deb" not in values.get("types", "").split() or off:
            continue
        suites, components = values.get("suites", "").split(), values.get("components", "").split()
        for uri in values.get("uris", "").split():
            yield AptSource(uri, tuple(suites), tuple(components), values.get("signed-by", ""))


def _one_line(line: str) -> AptSource | None:
    match = _LINE.match(line)
    if not match:
        return None
    options = dict(o.partition("=")[::2] for o in (match["options"] or "").split())
    components = tuple(match["rest"].split())
    return AptSource(match["uri"], (match["suite"],), components, options.get("signed-by", ""))


def _resolved(source: AptSource) -> AptSource:
    """Follow `mirror+file:`, as Debian's cloud images have it, to the first address listed there."""
    if not source.uri.startswith("mirror+file:"):
        return source
    try:
        lines = Path(source.uri.removeprefix("mirror+file:")).read_text().splitlines()
    except OSError:
        return source
    listed = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    return AptSource(listed[0] if listed else "", source.suites, source.components, source.signed_by)
