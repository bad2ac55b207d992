"""A Debian archive, from its signature down: InRelease, Release, Packages, each known by the one before."""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError, nearest
from kairosbuild.sources.openpgp import DEBIAN, signed_text
from kairosbuild.sources.stanza import Index, Package, alternatives, fields

ROLLING = ("sid", "unstable", "testing", "experimental", "forky")
"""Suites that neither an archive of updates nor one of security fixes stands beside (or need not)."""


class Fetch(Protocol):
    """How files from outside are had; `Locker.fetch` is one."""

    def __call__(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """Get a file, verified where its digest is given."""


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite of one mirror, and which of its components."""

    mirror: str
    name: str
    components: tuple[str, ...] = ("main",)

    @property
    def label(self) -> str:
        """How apt names what it keeps of a suite, less the host."""
        return f"{self.mirror}_dists_{self.name}"

    def json(self) -> dict[str, Any]:
        """The form this takes in a lock."""
        return {"mirror": self.mirror, "suite": self.name, "components": list(self.components)}

    @classmethod
    def of(cls, value: Any) -> Suite:
        """Read that form."""
        return cls(value["mirror"], value["suite"], tuple(value["components"]))


@dataclass(frozen=True, slots=True)
class Release:
    """What a distribution signed: fields of a suite, and the blob of each of its index files."""

    suite: Suite
    text: bytes
    files: dict[str, Blob]

    @property
    def date(self) -> str:
        """When it was signed, as it says itself."""
        return fields(self.text.partition(b"\nMD5Sum:")[0].partition(b"\nSHA256:")[0]).get("Date", "")

    def index(self, component: str, architecture: str) -> tuple[str, Blob]:
        """The uri (by hash) and the blob of a component's compressed `Packages`."""
        path = f"{component}/binary-{architecture}/Packages.xz"
        blob = self.files.get(path)
        if blob is None:
            raise InputError(
                f"{self.suite.name} has no component {component!r} for {architecture}",
                reason="debian-component",
            )
        folder = f"dists/{self.suite.name}/{path.rpartition('/')[0]}"
        return f"{self.suite.mirror}:{folder}/by-hash/SHA256/{blob.hex}", blob


@dataclass(frozen=True, slots=True)
class Archive:
    """Suites as one: their verified releases, and an index over all their packages."""

    releases: tuple[Release, ...]
    index: Index

    def newest(self, name: str) -> Package:
        """The newest file of a package. Raises InputError (`package-unknown`)."""
        if name not in self.index:
            raise unknown(name, self.index)
        return self.index.newest(name)[0]


def suites(
    release: str, *, components: Sequence[str] = ("main",), security: bool = True
) -> tuple[Suite, ...]:
    """The suites a release is made of: itself and, unless it is rolling, its updates and security fixes."""
    parts = tuple(components)
    found = [Suite("debian", release, parts)]
    if security and release not in ROLLING:
        found.append(Suite("debian", f"{release}-updates", parts))
        found.append(Suite("debian-security", f"{release}-security", parts))
    return tuple(found)


def open_archive(
    wanted: Sequence[Suite], architecture: str, fetch: Fetch, *, keyring: Path = DEBIAN
) -> Archive:
    """Fetch and verify what these suites say of themselves.

    `Valid-Until` is not looked at: a lock is a snapshot by intention, made as well from a mirror that is one.
    Raises HostError (`bad-signature`, `wrong-suite`, those of a fetch) and InputError (`debian-component`).
    """
    releases = tuple(_release(suite, fetch, keyring) for suite in wanted)
    files = []
    for release in releases:
        for component in release.suite.components:
            uri, blob = release.index(component, architecture)
            label = f"{release.suite.label}_{component}_binary-{architecture}_Packages"
            files.append((label, blob.digest, fetch(uri, digest=blob.digest, size=blob.size)))
    return Archive(releases, _index(tuple(files)))


def closure(index: Index, names: Iterable[str], without: Iterable[str] = ()) -> list[Package]:
    """The newest versions of these packages and of all they depend on, by name.

    Of alternatives, one asked for or taken already, else the first that exists; of a virtual name, its
    first provider.
    Raises InputError (`package-unknown`).
    """
    taken: dict[str, Package] = {}
    names = list(names)
    left_out = set(without) - set(names)
    todo = list(names)
    for name in todo:
        if name not in index:
            raise unknown(name, index)
    while todo:
        name = todo.pop()
        if name in taken or name in left_out:
            continue
        package, found = index.newest(name)
        taken[name] = package
        relation = ", ".join(filter(None, (found.get("Pre-Depends"), found.get("Depends"))))
        for choices in alternatives(relation):
            settled = taken.keys() | left_out | set(names)
            todo.append(_choose(index, choices, settled, package.name))
    return [taken[name] for name in sorted(taken)]


def unknown(name: str, index: Index) -> InputError:
    """The error for a package that no suite has."""
    near = [known for known in index if known[:2] == name[:2]]
    hint = nearest(name, near) if near else ""
    return InputError(f"there is no package {name!r}", reason="package-unknown", hint=hint)


def _choose(index: Index, choices: Sequence[str], settled: set[str], dependent: str) -> str:
    expanded = [real for name in choices for real in ([name] if name in index else index.providers(name))]
    for name in expanded:
        if name in settled:
            return name
    if not expanded:
        raise InputError(
            f"{dependent} depends on {' or '.join(choices)}, which no suite has", reason="package-unknown"
        )
    return expanded[0]


def _release(suite: Suite, fetch: Fetch, keyring: Path) -> Release:
    uri = f"{suite.mirror}:dists/{suite.name}/InRelease"
    text = signed_text(fetch(uri).read_bytes(), uri, keyring)
    found = fields(text)
    if suite.name not in (found.get("Suite"), found.get("Codename")):
        raise HostError(
            f"{uri} is the release of {found.get('Codename')!r}, not of {suite.name!r}", reason="wrong-suite"
        )
    files: dict[str, Blob] = {}
    for line in found.get("SHA256", "").split("\n"):
        digest, size, path = (*line.split(), "", "", "")[:3]
        if path:
            files[path] = Blob("sha256:" + digest, int(size))
    return Release(suite, text, files)


@lru_cache(4)
def _index(files: tuple[tuple[str, str, Path], ...]) -> Index:
    """Remembered by label and digest, since every node that locks asks for the same few."""
    return Index((label, _plain(digest, path)) for label, digest, path in files)


@lru_cache(4)
def _plain(digest: str, path: Path) -> bytes:
    """What is packed in a file of this digest: tools and base often come from the same suite."""
    return lzma.decompress(path.read_bytes())
