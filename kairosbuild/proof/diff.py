"""What differs between two systems: packages, files, kernel, modules, command line, sizes, layers, bytes to fetch.

Content is compared by content, and dates are not compared at all: a build clamps them. Files of layers that both
sides have are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from kairosbuild.core.digest import CHUNK
from kairosbuild.oci.entry import Entry
from kairosbuild.proof import packages
from kairosbuild.proof.packages import Package
from kairosbuild.proof.view import View

Order = Callable[[str, str, str], int]
"""(type of package, version, other version) → less than, equal to or greater than zero."""


@dataclass(frozen=True)
class Side:
    """One of the two. `layers` are (node, digest, bytes) as they travel, `files` an artifact's files (digest, bytes) by
    title, `cmdline` the kernel's, None where it is not known. `pieces` says of blobs that can be fetched in part what they are
    made of: the bytes of each piece by what it is called on both sides.
    """

    name: str
    view: View = field(default_factory=lambda: View(()))
    layers: tuple[tuple[str, str, int], ...] = ()
    files: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    cmdline: str | None = None
    pieces: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @cached_property
    def entries(self) -> dict[str, tuple[Entry, int]]:
        """Everything in its tree by path."""
        return {entry.path: (entry, layer) for entry, layer in self.view.entries()}

    @cached_property
    def size(self) -> int:
        """The bytes of all files in the tree."""
        return sum(entry.size for entry, _ in self.entries.values() if entry.type == "file")


@dataclass(frozen=True, slots=True)
class Changed:
    """Something on both sides that is not the same, in words or numbers."""

    name: str
    before: Any
    after: Any
    how: str = ""  # for packages: up or down; for files: content, or what of it


@dataclass(frozen=True, slots=True)
class Some:
    """What came, what went (name → version or size), and what changed."""

    added: Mapping[str, Any] = field(default_factory=dict)
    removed: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[Changed, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Difference:
    """See the module. Sizes are (before, after) in bytes; `fetch` is what a client with A lacks of B."""

    packages: Some
    files: Some
    kernels: Some
    modules: Some
    cmdline: Some
    artifacts: Some
    layers: Some
    size: tuple[int, int]
    fetch: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        parts = (
            self.packages,
            self.files,
            self.kernels,
            self.modules,
            self.cmdline,
            self.artifacts,
            self.layers,
        )
        return not any(parts)

    def json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "equal": self.equal}


def difference(a: Side, b: Side, order: Order) -> Difference:
    """What one would see who goes from `a` to `b`."""
    return Difference(
        packages=_packages(a, b, order),
        files=_files(a, b),
        kernels=_sets(_kernels(a), _kernels(b)),
        modules=_sets(_modules(a), _modules(b)),
        cmdline=_words(a.cmdline, b.cmdline),
        artifacts=_sized(a.files, b.files),
        layers=_sized(*({node: (digest, size) for node, digest, size in one.layers} for one in (a, b))),
        size=(a.size, b.size),
        fetch=_fetch(a, b),
    )


def _packages(a: Side, b: Side, order: Order) -> Some:
    before, after = (_by_name(packages.installed(one.view)) for one in (a, b))
    changed = []
    for name in sorted(set(before) & set(after)):
        old, new = before[name], after[name]
        if old.version != new.version:
            how = "up" if order(new.type, old.version, new.version) < 0 else "down"
            changed.append(Changed(name, old.version, new.version, how))
    return Some(
        {name: after[name].version for name in sorted(set(after) - set(before))},
        {name: before[name].version for name in sorted(set(before) - set(after))},
        tuple(changed),
    )


def _by_name(some: Iterable[Package]) -> dict[str, Package]:
    """By name; where several versions or architectures are installed, each is a name of its own."""
    found: dict[str, list[Package]] = {}
    for one in some:
        found.setdefault(one.name, []).append(one)
    return {
        name
        if len(them) == 1
        else f"{name}:{one.arch}"
        if len({x.arch for x in them}) > 1
        else f"{name}-{one.version}": one
        for name, them in found.items()
        for one in them
    }


def _files(a: Side, b: Side) -> Some:
    before, after = a.entries, b.entries
    changed = []
    for path in sorted(set(before) & set(after)):
        if how := _how(a, before[path], b, after[path]):
            changed.append(Changed(path, before[path][0].size, after[path][0].size, how))
    return Some(
        {path: after[path][0].size for path in sorted(set(after) - set(before))},
        {path: before[path][0].size for path in sorted(set(before) - set(after))},
        tuple(changed),
    )


def _how(a: Side, old: tuple[Entry, int], b: Side, new: tuple[Entry, int]) -> str:
    """In what an entry differs, "" in nothing."""
    one, other = old[0], new[0]
    if one.type != other.type:
        return f"{one.type} → {other.type}"
    said = [
        name
        for name, mine, theirs in (
            ("mode", one.mode, other.mode),
            ("owner", (one.uid, one.gid), (other.uid, other.gid)),
            ("target", one.target, other.target),
            ("attributes", one.xattrs, other.xattrs),
            ("device", (one.major, one.minor), (other.major, other.minor)),
        )
        if mine != theirs and not (name == "target" and one.type == "hardlink")
    ]
    if one.type == "file" and (one.size != other.size or not _same_content(a, old, b, new)):
        said.insert(0, "content")
    return ", ".join(said)


def _same_content(a: Side, old: tuple[Entry, int], b: Side, new: tuple[Entry, int]) -> bool:
    if old[1] >= 0 and new[1] >= 0 and a.view.layers[old[1]].digest == b.view.layers[new[1]].digest:
        return True  # the same layer shows it on both sides
    return _digest(a.view, old[0].path) == _digest(b.view, new[0].path)


def _digest(view: View, path: str) -> bytes:
    sha = hashlib.sha256()
    for chunk in view.chunks(path, CHUNK):
        sha.update(chunk)
    return sha.digest()


def _kernels(one: Side) -> set[str]:
    return {
        PurePosixPath(path).parts[-2]
        for path in one.entries
        if path.startswith(_MODULES) and path.endswith("/vmlinuz")
    }


def _modules(one: Side) -> set[str]:
    """Names of modules, without the version that they are of and without their compression."""
    names = (PurePosixPath(path).name for path in one.entries if path.startswith(_MODULES) and ".ko" in path)
    return {name.partition(".ko")[0] for name in names}


_MODULES = ("usr/lib/modules/", "lib/modules/")


def _sets(before: set[str], after: set[str]) -> Some:
    return Some(dict.fromkeys(sorted(after - before), ""), dict.fromkeys(sorted(before - after), ""))


def _words(before: str | None, after: str | None) -> Some:
    """The words of a command line, those of the layers' list (which name root hashes) as any others."""
    if before is None or after is None:
        return Some()
    return _sets(set(before.split()), set(after.split()))


def _sized(before: Mapping[str, tuple[str, int]], after: Mapping[str, tuple[str, int]]) -> Some:
    both = [name for name in after if name in before]
    return Some(
        {name: after[name][1] for name in after if name not in before},
        {name: before[name][1] for name in before if name not in after},
        tuple(
            Changed(name, before[name][1], after[name][1])
            for name in both
            if before[name][0] != after[name][0]
        ),
    )


def _fetch(a: Side, b: Side) -> int:
    """The bytes of what B has and A has not, as they travel: whole blobs, and pieces of those that are had in pieces."""
    have = {digest for _, digest, _ in a.layers} | {digest for digest, _ in a.files.values()}
    at_hand = {name for pieces in a.pieces.values() for name in pieces}
    wanted: Sequence[tuple[str, int]] = [(digest, size) for _, digest, size in b.layers]
    lacking = {digest: size for digest, size in [*wanted, *b.files.values()] if digest not in have}
    saved = (
        sum(size for name, size in b.pieces.get(digest, {}).items() if name in at_hand) for digest in lacking
    )
    return sum(lacking.values()) - sum(saved)
