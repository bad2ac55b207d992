"""Two locks compared in words: packages that went up or down, came or left; images, files, tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kairosbuild.core.digest import of_bytes
from kairosbuild.recipe.lockfile import LockEntry, LockFile
from kairosbuild.sources.version import compare

_SHORT = 19  # characters of a digest that are shown: sha256: and twelve digits


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `how` is up, down, added, removed or changed; `before` and `after` are versions or digests."""

    node: str
    what: str  # package, image, file, node or lock
    name: str
    how: str
    before: str = ""
    after: str = ""

    def line(self) -> str:
        """The change as a person reads it."""
        old, new = self.before[:_SHORT] if ":" in self.before else self.before, self.after
        new = new[:_SHORT] if new.startswith("sha256:") else new
        return f"{self.how:8} {self.what} {self.name}  {' → '.join(filter(None, (old, new)))}".rstrip()


def changes(before: LockFile, after: LockFile) -> list[Change]:
    """What differs, by node in the order of their names, tools trees last."""
    return [
        *_of_entries(before.nodes, after.nodes, ""),
        *_of_entries(before.toolchain, after.toolchain, "tools:"),
    ]


def _of_entries(
    before: Mapping[str, LockEntry], after: Mapping[str, LockEntry], prefix: str
) -> Iterator[Change]:
    for name in sorted({*before, *after}):
        node = prefix + name
        if name not in after:
            yield Change(node, "node", node, "removed", before=_summary(before[name]))
        elif name not in before:
            yield Change(node, "node", node, "added", after=_summary(after[name]))
        else:
            found = [*_of_node(node, before[name], after[name])]
            yield from found
            if not found and before[name] != after[name]:
                yield Change(node, "lock", "details", "changed")


def _of_node(node: str, before: LockEntry, after: LockEntry) -> Iterator[Change]:
    old, new = _packages(before), _packages(after)
    for key in sorted({*old, *new}):
        was, now = old.get(key, ("", "")), new.get(key, ("", ""))
        if was != now:
            yield Change(node, "package", key, _how(was[0], now[0]), was[0], now[0])
    for what, of in (("image", _images), ("file", _files)):
        was_all, now_all = of(before), of(after)
        for name in sorted({*was_all, *now_all}):
            one, other = was_all.get(name, ""), now_all.get(name, "")
            if one != other:
                how = "changed" if one and other else "added" if other else "removed"
                yield Change(node, what, name, how, one, other)


def _how(before: str, after: str) -> str:
    if not before or not after:
        return "added" if after else "removed"
    order = compare(before, after)
    return "up" if order < 0 else "down" if order > 0 else "changed"


def _packages(entry: LockEntry) -> dict[str, tuple[str, str]]:
    """Every package by name (and architecture, where it stands twice): version and digest."""
    rows = [
        row for value in entry.data.values() if isinstance(value, list) for row in value if _is_package(row)
    ]
    names = [row["name"] for row in rows]
    return {
        row["name"] if names.count(row["name"]) == 1 else f"{row['name']}:{row.get('arch', '')}": (
            str(row["version"]),
            str(row.get("digest", "")),
        )
        for row in rows
    }


def _is_package(row: Any) -> bool:
    return isinstance(row, Mapping) and "name" in row and "version" in row


def _images(entry: LockEntry) -> dict[str, str]:
    """Every image by its reference, and a digest of what it came to."""
    found = {}
    if manifest := entry.data.get("manifest"):
        place = entry.materials[0].uri.partition("@")[0] if entry.materials else ""
        found[place.partition("://")[2] or place] = str(manifest)
    images = entry.data.get("images")
    if isinstance(images, Mapping):
        from kairosbuild.core.canonical import dumps

        found |= {name: of_bytes(dumps(value)).digest for name, value in images.items()}
    return found


def _files(entry: LockEntry) -> dict[str, str]:
    """Every file by its address, unless it is a package or part of an image."""
    if _packages(entry) or _images(entry):
        return {}
    return {pin.uri: pin.digest for pin in entry.materials}


def _summary(entry: LockEntry) -> str:
    """What a whole entry holds, in a few words."""
    packages, images = _packages(entry), _images(entry)
    counts = ((len(packages), "package"), (len(images), "image"), (len(_files(entry)), "file"))
    return ", ".join(f"{count} {word}{'s' * (count > 1)}" for count, word in counts if count)
