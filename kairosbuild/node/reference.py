"""Names of images: HOST/REPOSITORY[:TAG][@DIGEST], as a registry knows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kairosbuild.node.problem import Problem

_HOST = r"(?P<host>localhost(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d+)?|[A-Za-z0-9-]+:\d+)"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"{_HOST}/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a host, and which of its images: a digest counts more than a tag."""

    host: str
    repository: str
    tag: str = "latest"
    digest: str = ""

    @property
    def version(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """Read a reference. Raises Problem `bad-reference`."""
    found = _REFERENCE.fullmatch(text.strip())
    if found is None:
        raise Problem(
            f"{text!r} is no image reference"
            if text
            else "no image reference is given, and none is known here",
            reason="bad-reference",
            hint="write HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:DIGEST, the host always",
        )
    return Reference(found["host"], found["repository"], found["tag"] or "latest", found["digest"] or "")


def is_digest(value: object) -> bool:
    """Whether this is a sha256 digest as OCI writes it."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
