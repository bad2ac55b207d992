"""Gates before anything is published: licences, forbidden packages, sizes. Declared in BUILD.yaml, judged here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from kairosbuild.proof import licences
from kairosbuild.proof.contents import Contents
from kairosbuild.proof.packages import Package
from kairosbuild.recipe.workspace import LicensePolicy, Policy, SizePolicy

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Breach:
    """What does not hold: a machine reason, a sentence, what would be right, and the node it came by."""

    reason: str
    message: str
    hint: str
    node: str


def breaches(policy: Policy, name: str, contents: Contents | None, files: int) -> tuple[Breach, ...]:
    """All that is wrong with a published node. `files` counts the bytes of an artifact's files, 0 for an image."""
    found = [*_sizes(policy.sizes, name, contents, files)]
    if contents is not None:
        found += _forbidden(policy.forbidden, contents)
        found += _licences(policy.licenses, contents)
    return tuple(found)


def image_limit(limits: SizePolicy, name: str, contents: Contents) -> Iterator[Breach]:
    """The layers of an image, each and together."""
    total = sum(layer.size for layer in contents.layers)
    if limits.image is not None and total > limits.image:
        largest = max(contents.layers, key=lambda layer: layer.size)
        hint = f"the largest layer is {largest.node!r} with {largest.size} bytes"
        yield Breach("policy-size", f"{name}: an image of {total} bytes, at most {limits.image}", hint, name)
    for layer in contents.layers:
        if limits.layer is not None and layer.size > limits.layer:
            what = f"{layer.node}: a layer of {layer.size} bytes, at most {limits.layer}"
            yield Breach("policy-size", what, "", layer.node)


def _sizes(limits: SizePolicy, name: str, contents: Contents | None, files: int) -> Iterator[Breach]:
    if files and limits.artifact is not None and files > limits.artifact:
        yield Breach("policy-size", f"{name}: files of {files} bytes, at most {limits.artifact}", "", name)
    if not files and contents is not None:
        yield from image_limit(limits, name, contents)


def _forbidden(patterns: Iterable[str], contents: Contents) -> Iterator[Breach]:
    for one in contents.packages:
        if pattern := _matched(one.name, patterns):
            what = f"{one.node or 'the image'}: the package {one.name} {one.version} is forbidden ({pattern})"
            yield Breach("policy-package", what, "remove it, or see what depends on it", one.node)


def _licences(policy: LicensePolicy, contents: Contents) -> Iterator[Breach]:
    asked = [one for one in contents.packages if not _matched(one.name, policy.exempt)]
    if policy.unknown == "deny":
        yield from _unknown([one for one in asked if one.licence == licences.NONE])
    for one in asked:
        if one.licence != licences.NONE and not licences.accepts(
            one.licence, lambda name: _allowed(policy, name)
        ):
            bad = [name for name in licences.names(one.licence) if not _allowed(policy, name)]
            what = f"{one.node or 'the image'}: the licence of {one.name} {one.version} is not allowed: {', '.join(bad)}"
            yield Breach("policy-licence", what, f"it states {one.licence}", one.node)


def _unknown(some: list[Package]) -> Iterator[Breach]:
    """One breach a node: there may be many."""
    for node in dict.fromkeys(one.node for one in some):
        mine = [one.name for one in some if one.node == node]
        more = f" and {len(mine) - _MOST_NAMED} more" if len(mine) > _MOST_NAMED else ""
        what = f"{node or 'the image'}: no licence can be read of {', '.join(mine[:_MOST_NAMED])}{more}"
        yield Breach("policy-licence", what, "licenses.exempt names packages that were looked at", node)


def _allowed(policy: LicensePolicy, name: str) -> bool:
    return not _matched(name, policy.deny) and (not policy.allow or bool(_matched(name, policy.allow)))


def _matched(name: str, patterns: Iterable[str]) -> str:
    return next((one for one in patterns if fnmatchcase(name, one)), "")


def images_of(kind: str, spec: Any, locked: Any) -> dict[str, str]:
    """The images that a node takes from elsewhere: reference → digest of the manifest it was locked to."""
    found = {spec["image"]: locked["manifest"]} if spec.get("image") and "manifest" in locked else {}
    for name, one in locked.get("images", {}).items():
        found[name] = one["manifest"]
    return found
