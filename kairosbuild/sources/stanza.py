"""The index of a Debian archive's packages: paragraphs of fields (deb822(5)), read when they are asked for.

An index has 60,000 paragraphs of which a build looks at some hundreds. Splitting all and parsing few takes
a quarter of a second where parsing all takes more than one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from kairosbuild.sources.version import newest_last

_NAMES = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9-]+)?\s*(?:\([^)]*\))?")


@dataclass(frozen=True, slots=True)
class Package:
    """One exact file of an archive. `uri` is relative to a named mirror; `size` counts bytes."""

    name: str
    version: str
    architecture: str
    uri: str
    digest: str
    size: int

    def json(self) -> dict[str, Any]:
        """What of it identifies the package; where it lies does not."""
        return {
            "name": self.name,
            "version": self.version,
            "arch": self.architecture,
            "digest": self.digest,
            "size": self.size,
        }


def fields(paragraph: bytes | str) -> dict[str, str]:
    """The fields of one paragraph; continuation lines keep their line breaks."""
    text = paragraph if isinstance(paragraph, str) else paragraph.decode("utf-8", "replace")
    found: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        if line[:1] in (" ", "\t"):
            found[last] = f"{found.get(last, '')}\n{line[1:]}"
        elif line:
            last, _, value = line.partition(":")
            found[last] = value.strip()
    return found


def alternatives(relation: str) -> list[list[str]]:
    """A relation field as the names it allows: `a | b, c (>= 1)` is [[a, b], [c]]. No versions."""
    found = []
    for clause in relation.split(","):
        names = [match[1] for part in clause.split("|") if (match := _NAMES.match(part.strip()))]
        if names:
            found.append(names)
    return found


class Index:
    """The packages of one or more `Packages` files, each given as (label, bytes).

    A label is `MIRROR_REST`; the packages' files are on that mirror.
    """

    def __init__(self, files: Iterable[tuple[str, bytes]]) -> None:
        self._paragraphs: dict[str, list[tuple[str, bytes]]] = {}
        self._providers: dict[str, set[str]] | None = None
        self.labels: list[str] = []
        for label, data in files:
            self.labels.append(label)
            for paragraph in data.split(b"\n\n"):
                if paragraph.startswith(b"Package: "):
                    name = paragraph[9 : paragraph.find(b"\n")].decode("ascii", "replace")
                    self._paragraphs.setdefault(name, []).append((label, paragraph))

    def __contains__(self, name: object) -> bool:
        return name in self._paragraphs

    def __iter__(self) -> Iterator[str]:
        return iter(self._paragraphs)

    def candidates(self, name: str) -> list[tuple[Package, Mapping[str, str]]]:
        """Every version of a package, newest first, with its fields."""
        found = [_package(label, paragraph) for label, paragraph in self._paragraphs.get(name, ())]
        return sorted(found, key=lambda pair: newest_last(pair[0].version), reverse=True)

    def newest(self, name: str) -> tuple[Package, Mapping[str, str]]:
        """The newest version of a package; KeyError when there is none."""
        return self.candidates(name)[0] if name in self._paragraphs else _absent(name)

    def at(self, uri: str, digest: str) -> Mapping[str, str] | None:
        """What the index says of the package whose file this is; None when it has that no longer."""
        name = uri.rpartition("/")[2].partition("_")[0]
        return next((found for package, found in self.candidates(name) if package.digest == digest), None)

    def providers(self, virtual: str) -> list[str]:
        """The packages that say they provide this name, sorted."""
        if self._providers is None:
            self._providers = {}
            for name, provided in self._each(b"Provides"):
                for given in provided.split(","):
                    self._providers.setdefault(given.partition("(")[0].strip(), set()).add(name)
        return sorted(self._providers.get(virtual, ()))

    def within_reach(self, names: Iterable[str], fields: Sequence[str]) -> set[str]:
        """Every package that what these fields say could bring in, over any alternative and any provider."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            todo += self.providers(name)
            for _, found in self.candidates(name):
                for field in fields:
                    todo += chain.from_iterable(alternatives(found.get(field, "")))
        return seen & self._paragraphs.keys()

    def part(self, names: Iterable[str]) -> dict[str, bytes]:
        """The files as they would be if they had these packages only, by label."""
        parts: dict[str, list[bytes]] = {label: [] for label in self.labels}
        for name in sorted(names):
            for label, paragraph in self._paragraphs.get(name, ()):
                parts[label].append(paragraph.strip(b"\n") + b"\n\n")
        return {label: b"".join(found) for label, found in parts.items()}

    def having(self, field: str, value: str) -> list[str]:
        """The packages of which some version has this value in this field, sorted."""
        return sorted({name for name, found in self._each(field.encode()) if found == value})

    def _each(self, field: bytes) -> Iterator[tuple[str, str]]:
        mark = b"\n" + field + b": "
        for name, versions in self._paragraphs.items():
            for _, paragraph in versions:
                start = paragraph.find(mark)
                if start >= 0:
                    start += len(mark)
                    end = paragraph.find(b"\n", start)
                    value = paragraph[start : end if end >= 0 else None]
                    yield name, value.decode("utf-8", "replace").strip()


def _absent(name: str) -> Any:
    raise KeyError(name)


def _package(label: str, paragraph: bytes) -> tuple[Package, Mapping[str, str]]:
    found = fields(paragraph)
    package = Package(
        found["Package"],
        found["Version"],
        found["Architecture"],
        f"{label.partition('_')[0]}:{found['Filename']}",
        "sha256:" + found["SHA256"],
        int(found["Size"]),
    )
    return package, found
