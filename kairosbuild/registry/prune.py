"""Retention: which tags of a repository go, and with them which manifests, never one that a kept tag leads to.

A tag is kept when a policy says so, or when none applies to it. What it leads to is kept with it: the manifests of
an index, the image that an artifact is about, and what is said about any of these (signatures, inventories: the
tags that begin with the digest). Everything is looked at before the first thing is deleted. Blobs are the
registry's: its own garbage collection removes what no manifest names.

What a build publishes carries the recipe's epoch as its date, so that equal builds are equal; where that says
nothing, tags are ordered as versions (1.9 before 1.10), and an age is not known, which keeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from kairosbuild.core import canonical
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.registry.documents import CREATED
from kairosbuild.registry.manifests import annotations_of, index_rows, is_index, read_index, subject_of
from kairosbuild.registry.target import INDEX, Manifest, Target

_ABOUT = re.compile(r"sha256-([0-9a-f]{64})(?:\..*)?")
_JOBS = 8
_KNOWN_AGE = 86_400.0 * 365  # a date before 1971 is an epoch and not a date


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept of the tags that match `only` (all, if it is empty); other tags are not touched.

    `keep` are patterns of tags; `last` how many of the newest; `newer` the age in seconds below which a tag stays.
    """

    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    last: int | None = None
    newer: float | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, or would have: tags, and manifests by digest."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    manifests: tuple[str, ...]


def prune(target: Target, policy: Policy, *, now: float, dry: bool = False) -> Pruned:
    """Apply a policy. Raises InputError `no-policy`, HostError `registry-no-delete`."""
    if policy.last is None and policy.newer is None and not policy.keep:
        raise InputError(
            "nothing says what is to be kept", reason="no-policy", hint="--keep-last, --newer-than, --keep"
        )
    with target.writing():
        there = _look(target)
        plain = {tag: manifest for tag, manifest in there.items() if not _about(tag)}
        doomed = _doomed(plain, policy, now)
        alive = _closure(there, doomed)
        gone = {tag for tag in there if (_about(tag) or tag) not in alive and (tag in doomed or _about(tag))}
        digests = _digests(there[tag] for tag in gone) - alive
        removed = tuple(sorted(tag for tag in there if there[tag].blob.digest in digests))
        if not dry:
            _forget(target, there, digests, alive)
            for digest in sorted(digests):
                target.delete(digest, [tag for tag in removed if there[tag].blob.digest == digest])
    kept = tuple(sorted(tag for tag in plain if tag not in removed))
    return Pruned(removed, kept, tuple(sorted(digests)))


def _look(target: Target) -> dict[str, Manifest]:
    """Every tag with its manifest."""
    tags = target.tags()
    with ThreadPoolExecutor(_JOBS) as pool:
        found = pool.map(lambda tag: _manifest(target, tag), tags)
        return {tag: manifest for tag, manifest in zip(tags, found, strict=True) if manifest}


def _manifest(target: Target, tag: str) -> Manifest | None:
    try:
        return target.get_manifest(tag)
    except HostError as problem:
        if problem.reason != "registry-not-found":  # somebody removed it meanwhile, or its manifest is gone
            raise
        return None


def _doomed(plain: Mapping[str, Manifest], policy: Policy, now: float) -> set[str]:
    """The tags that the policy does not keep."""
    subject = [tag for tag in plain if not policy.only or _matches(tag, policy.only)]
    subject = [tag for tag in subject if not _matches(tag, policy.keep)]
    newest = sorted(subject, key=lambda tag: (_date(plain[tag]), _version(tag)), reverse=True)
    kept = set(newest[: policy.last] if policy.last is not None else ())
    if policy.newer is not None:
        for tag in subject:
            date = _date(plain[tag])
            if date < _KNOWN_AGE or now - date < policy.newer:
                kept.add(tag)
    return set(subject) - kept


def _closure(there: Mapping[str, Manifest], doomed: set[str]) -> set[str]:
    """The digests that the kept tags lead to. A list of what is said of one does not keep what a policy dooms."""
    known = {manifest.blob.digest: manifest for manifest in there.values()}
    lists = {m.blob.digest for tag, m in there.items() if _about(tag) and is_index(m)}
    chosen = {there[tag].blob.digest for tag in doomed}
    todo = [there[tag].blob.digest for tag in there if tag not in doomed and not _about(tag)]
    found: set[str] = set()
    while todo:
        digest = todo.pop()
        if digest in found:
            continue
        found.add(digest)
        if digest in known:
            todo += [one for one in _led_to(known[digest]) if digest not in lists or one not in chosen]
        todo += [m.blob.digest for tag, m in there.items() if _about(tag) == digest]
    return found


def _led_to(manifest: Manifest) -> list[str]:
    below = [one.blob.digest for one in read_index(manifest, "")] if is_index(manifest) else []
    return [*below, *filter(None, [subject_of(manifest)])]


def _digests(manifests: Iterable[Manifest]) -> set[str]:
    """Of these and of what the indexes among them list."""
    return {digest for m in manifests for digest in (m.blob.digest, *(_led_to(m) if is_index(m) else ()))}


def _forget(target: Target, there: Mapping[str, Manifest], gone: set[str], alive: set[str]) -> None:
    """Take what goes off the lists of what stays: an index under a fallback tag may name both."""
    for tag, manifest in there.items():
        if manifest.blob.digest not in alive or not _about(tag) or not is_index(manifest):
            continue
        rows = index_rows(manifest, target.name)
        left = [row for row in rows if row["digest"] not in gone]
        if len(left) < len(rows):
            document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": left}
            target.tag({tag: Manifest(INDEX, canonical.dumps(document))})


def _about(tag: str) -> str:
    """The digest that such a tag (`sha256-HEX.sig`) says something about, "" for any other."""
    match = _ABOUT.fullmatch(tag)
    return f"sha256:{match[1]}" if match else ""


def _matches(tag: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(tag, pattern) for pattern in patterns)


def _date(manifest: Manifest) -> float:
    """When it says that it was made, Unix seconds; 0 when it does not."""
    said = annotations_of(manifest).get(CREATED, "")
    try:
        found = datetime.fromisoformat(said).timestamp()
    except ValueError:
        return 0.0
    return found if found >= _KNOWN_AGE else 0.0


def _version(tag: str) -> list[tuple[int, int, str]]:
    """Numbers as numbers, so that 1.10 comes after 1.9."""
    parts = re.findall(r"\d+|\D+", tag)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
