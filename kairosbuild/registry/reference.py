"""References to what a registry holds: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`.

The grammar is the distribution specification's (<https://github.com/opencontainers/distribution-spec>),
stricter than that of the library beneath: a host must be named, so that nobody's default is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from kairosbuild.core.digest import is_digest
from kairosbuild.core.errors import InputError

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::(\d{1,5}))?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LOOP = re.compile(r"127(\.\d{1,3}){3}")
_DOCKER_HUB = {"docker.io", "index.docker.io", "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and at most one thing in it. `host` carries the port, if one was named."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def version(self) -> str:
        """What the manifest is asked for by: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def bare(self) -> Reference:
        """The repository alone."""
        return replace(self, tag="", digest="")

    @property
    def endpoint(self) -> str:
        """The host that answers requests; Docker Hub's is not the one in its references."""
        return "registry-1.docker.io" if self.host in _DOCKER_HUB else self.host


def parse(text: str) -> Reference:
    """Read a reference, `oci://` or `docker://` before it or not. Raises InputError `bad-reference`."""
    rest = re.sub(r"^(oci|docker)://", "", text)
    rest, _, digest = rest.partition("@")
    host, slash, path = rest.partition("/")
    repository, _, tag = path.partition(":")
    if not slash or not _is_host(host):
        raise _bad(text, "names no registry host", f"write HOST/{rest or 'REPOSITORY'}, such as docker.io/…")
    if host in _DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise _bad(text, f"the repository {repository!r} is malformed", "lower case, digits, . _ - /")
    if ":" in path and not is_tag(tag):
        raise _bad(text, f"the tag {tag!r} is malformed", "at most 128 letters, digits, _ . -")
    if "@" in text and not is_digest(digest):
        raise _bad(text, f"the digest {digest!r} is malformed", "sha256: and 64 hex digits")
    return Reference(host, repository, tag, digest)


def is_tag(text: str) -> bool:
    """Whether a registry takes this as a tag."""
    return _TAG.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Whether this host (with or without port) is this machine, by its text alone."""
    match = _HOST.fullmatch(host)
    name = match[1].strip("[]") if match else host
    if ":" not in name:
        return name == "localhost" or name.endswith(".localhost") or _LOOP.fullmatch(name) is not None
    import ipaddress  # for the many ways to write ::1

    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    """A first component is a host when it has a dot or a port or is localhost (Docker's rule)."""
    match = _HOST.fullmatch(text)
    if not match or not ("." in text or ":" in text or text == "localhost"):
        return False
    return match[2] is None or 0 < int(match[2]) < 65536


def _bad(text: str, why: str, hint: str) -> InputError:
    return InputError(f"reference {text!r}: {why}", reason="bad-reference", hint=hint)
