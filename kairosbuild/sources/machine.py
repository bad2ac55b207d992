"""The machine's own package sources, as the mirrors they name: apt, dnf and zypper, apk, pacman.

A machine that installs its own packages from somewhere near should fetch ours from there too. Only what
is plainly a mirror of a distribution is taken; a metalink or a list of mirrors is left to those who read it.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ETC = Path("/etc")
_PLACE = ("http://", "https://", "file:")
_DEBIAN = {
    "stable", "oldstable", "oldoldstable", "testing", "unstable", "sid", "experimental",
    "buster", "bullseye", "bookworm", "trixie", "forky", "duke",
}  # fmt: skip
_UBUNTU = {"focal", "jammy", "noble", "plucky", "questing", "resolute", "devel"}
_LINE = re.compile(r"\s*deb\s+(?:\[(?P<options>[^]]*)]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)")
_RPM = {
    "fedora": re.compile(r"(.+/fedora/linux/releases)/\$releasever/Everything/"),
    "fedora-updates": re.compile(r"(.+/fedora/linux/updates)/\$releasever/Everything/"),
    "rocky": re.compile(r"(.+/rocky)/\$releasever/BaseOS/"),
    "almalinux": re.compile(r"(.+/almalinux)/\$releasever/BaseOS/"),
    "opensuse": re.compile(r"(.+?)/(?:tumbleweed/repo|distribution/leap/[^/]+/repo)/oss/?$"),
}
_APK = re.compile(r"(?:@\S+\s+)?(\S+?)/(?:v[0-9.]+|edge|latest-stable)/(?:main|community)/?\s*$")
_PACMAN = re.compile(r"\s*Server\s*=\s*(\S+?)/\$repo/os/\$arch/?\s*$")


def mirrors(etc: Path = ETC) -> dict[str, str]:
    """The mirrors that this machine's own package managers are set to, by our names."""
    found = of_apt(apt_sources(etc / "apt")) | _of_rpm(etc) | _of_apk(etc) | _of_pacman(etc)
    return {name: place for name, place in found.items() if place.startswith(_PLACE)}


# -- apt -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AptSource:
    """One `deb` line or stanza: where, which suites, which components, and what it is signed by."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


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


def _archive(source: AptSource) -> str:
    """Which mirror of ours a source is: a release's name in a component that its distribution has."""
    if "main" not in source.components and "updates/main" not in source.components:
        return ""
    for suite in source.suites:
        release, _, pocket = suite.replace("/", "-").partition("-")
        security = pocket.startswith("security") or (pocket == "updates" and "/" in suite)
        if release in _DEBIAN:
            return "debian-security" if security else "debian"
        if release in _UBUNTU:
            ports = source.uri.rstrip("/").endswith("-ports")
            return "ubuntu-ports" if ports else "ubuntu-security" if security else "ubuntu"
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


# -- dnf and zypper ------------------------------------------------------------------------------------


def _of_rpm(etc: Path) -> dict[str, str]:
    """From the `baseurl` of every enabled repository of dnf and of zypper."""
    found: dict[str, str] = {}
    variables = _dnf_variables(etc)
    for folder in (etc / "yum.repos.d", etc / "zypp" / "repos.d"):
        for file in sorted(folder.glob("*.repo")):
            for url in _base_urls(file):
                for name, place in _rpm_mirror(_filled_in(url, variables)):
                    found.setdefault(name, place)
    return found


def _base_urls(file: Path) -> Iterator[str]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(file.read_text(errors="replace"))
    except (OSError, configparser.Error):
        return
    for section in parser.sections():
        if parser.get(section, "enabled", fallback="1").strip().lower() not in ("0", "no", "false"):
            yield from parser.get(section, "baseurl", fallback="").split()[:1]


def _dnf_variables(etc: Path) -> dict[str, str]:
    files = [file for name in ("dnf/vars", "yum/vars") for file in sorted((etc / name).glob("*"))]
    return {file.name: file.read_text(errors="replace").strip() for file in files if file.is_file()}


def _filled_in(url: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        if name not in ("releasever", "basearch"):
            url = url.replace(f"${name}", value).replace(f"${{{name}}}", value)
    return url.replace("${releasever}", "$releasever")


def _rpm_mirror(url: str) -> Iterator[tuple[str, str]]:
    for name, pattern in _RPM.items():
        if match := pattern.match(url):
            yield name, match[1]


# -- apk and pacman --------------------------------------------------------------------------------------


def _of_apk(etc: Path) -> dict[str, str]:
    return _first_match("alpine", etc / "apk" / "repositories", _APK)


def _of_pacman(etc: Path) -> dict[str, str]:
    return _first_match("arch", etc / "pacman.d" / "mirrorlist", _PACMAN)


def _first_match(name: str, file: Path, pattern: re.Pattern[str]) -> dict[str, str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    places = [
        match[1] for line in lines if not line.lstrip().startswith("#") and (match := pattern.match(line))
    ]
    return {name: places[0]} if places else {}
