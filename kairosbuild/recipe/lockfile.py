"""The lock file beside a recipe: everything mutable, resolved once.

Pretty JSON (which is YAML too) with sorted keys and one material a line, so that a change shows as
the lines that changed. Places in it are relative to a mirror by name (`debian:pool/…`), never to a
host. A damaged one is an error that says how it is mended, and never half read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairosbuild.core import atomic, canonical
from kairosbuild.core.digest import is_digest
from kairosbuild.core.errors import InputError, Origin

VERSION = 1
MEND = "`kbuild lock {recipe}` writes it anew"

_URI = re.compile(r"[a-z][a-z0-9+.-]*:[^\x00-\x20\x7f]+")


@dataclass(frozen=True, slots=True)
class Pin:
    """One file from outside. `uri` is absolute or relative to a mirror; `size` counts bytes."""

    uri: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class LockEntry:
    """What one node, or one tools tree, came to. `checksum` is of all that it was resolved from.

    `signatures` says which key was found to have signed an image (its manifest's digest → the key's id).
    """

    checksum: str
    data: Mapping[str, Any] = field(default_factory=dict)
    materials: tuple[Pin, ...] = ()
    signatures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LockFile:
    """A whole lock: nodes by name, tools trees by purpose (see `slot`)."""

    nodes: Mapping[str, LockEntry] = field(default_factory=dict)
    toolchain: Mapping[str, LockEntry] = field(default_factory=dict)


EMPTY = LockFile()
_SET = " --set "


def slot(name: str, given: Mapping[str, str]) -> str:
    """What the entry of a node is called: its name and what `--set` changed of what it depends on.

    So one lock serves every set of values, and no two of them displace each other.
    """
    return name + "".join(f"{_SET}{shlex.quote(f'{key}={value}')}" for key, value in sorted(given.items()))


def of_slot(text: str) -> tuple[str, frozenset[str]]:
    """The node's name, and the variables that were set."""
    name, _, rest = text.partition(_SET)
    try:
        words = shlex.split(rest)
    except ValueError:  # somebody's hand
        words = [rest]
    return name, frozenset(word.partition("=")[0] for word in words if word != "--set")


def path_for(recipe: Path) -> Path:
    """Where the lock of this recipe file is."""
    return recipe.with_suffix(".lock")


def read(path: Path, *, recipe: str = "RECIPE") -> LockFile:
    """The lock in this file, empty if there is none. Raises InputError for a damaged one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return EMPTY
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", reason="lock-unreadable") from None
    return loads(data, str(path), recipe=recipe)


def write(path: Path, lock: LockFile) -> None:
    """Put this lock in its file, atomically; a file that says the same already is left alone."""
    data = dumps(lock)
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass  # none yet, or none that can be read: it is replaced
    atomic.write_bytes(path, data)


def dumps(lock: LockFile) -> bytes:
    """The bytes of a lock file; equal locks give equal bytes."""
    value = {
        "version": VERSION,
        "nodes": {name: _entry_json(entry) for name, entry in lock.nodes.items()},
        "toolchain": {name: _entry_json(entry) for name, entry in lock.toolchain.items()},
    }
    canonical.dumps(value)  # refuses what JSON cannot say in one way
    return (_pretty(value, 0) + "\n").encode()


def loads(data: bytes, file: str, *, recipe: str = "RECIPE") -> LockFile:
    """The lock that these bytes are; `file` is for messages."""
    reader = _Reader(file, MEND.format(recipe=recipe))
    value = reader.json(data)
    reader.keys(value, "the lock", ("version", "nodes", "toolchain"))
    if value["version"] != VERSION:
        raise reader.error(f"version {value['version']!r} is not {VERSION}", "lock-version")
    return LockFile(reader.entries(value["nodes"], "nodes"), reader.entries(value["toolchain"], "toolchain"))


class _Reader:
    """Strict: every key known, every value of its type."""

    def __init__(self, file: str, hint: str) -> None:
        self.file, self.hint = file, hint

    def error(self, message: str, reason: str = "lock-damaged", line: int = 1, column: int = 1) -> InputError:
        return InputError(
            f"the lock file is damaged: {message}" if reason == "lock-damaged" else message,
            reason=reason,
            hint=self.hint,
            origin=Origin(self.file, line, column),
        )

    def json(self, data: bytes) -> Any:
        if b"\\ud" in data.lower():
            raise self.error("half of a character")  # a lone surrogate could never be written again
        try:
            return canonical.loads(data.decode())
        except json.JSONDecodeError as error:
            message = "merge conflict" if b"<<<<<<<" in data else error.msg
            raise self.error(message, line=error.lineno, column=error.colno) from None
        except (ValueError, RecursionError) as error:
            raise self.error(str(error)) from None

    def keys(self, value: Any, what: str, names: tuple[str, ...]) -> None:
        if not isinstance(value, dict) or set(value) != set(names):
            raise self.error(f"{what} has not exactly the keys {', '.join(names)}")

    def entries(self, value: Any, what: str) -> dict[str, LockEntry]:
        if not isinstance(value, dict):
            raise self.error(f"{what} is no mapping")
        return {name: self.entry(entry, f"{what}.{name}") for name, entry in value.items()}

    def entry(self, value: Any, what: str) -> LockEntry:
        signatures = value.pop("signatures", {}) if isinstance(value, dict) else {}
        self.keys(value, what, ("checksum", "data", "materials"))
        if not isinstance(signatures, dict) or not all(
            is_digest(image) and isinstance(key, str) for image, key in signatures.items()
        ):
            raise self.error(f"{what}.signatures is no mapping of digests to keys")
        if not is_digest(value["checksum"]):
            raise self.error(f"{what}.checksum is no sha256 digest")
        if not isinstance(value["data"], dict) or not isinstance(value["materials"], list):
            raise self.error(f"{what}: data is a mapping and materials a list")
        pins = tuple(self.pin(pin, f"{what}.materials[{at}]") for at, pin in enumerate(value["materials"]))
        return LockEntry(value["checksum"], value["data"], pins, signatures)

    def pin(self, value: Any, what: str) -> Pin:
        self.keys(value, what, ("uri", "digest", "size"))
        uri, digest, size = value["uri"], value["digest"], value["size"]
        if not isinstance(uri, str) or not _URI.fullmatch(uri) or ".." in uri.partition(":")[2].split("/"):
            raise self.error(f"{what}.uri names no place")
        if not is_digest(digest):
            raise self.error(f"{what}.digest is no sha256 digest")
        if type(size) is not int or size < 0:
            raise self.error(f"{what}.size is no number of bytes")
        return Pin(uri, digest, size)


def _entry_json(entry: LockEntry) -> dict[str, Any]:
    pins = [{"uri": pin.uri, "digest": pin.digest, "size": pin.size} for pin in entry.materials]
    signed = {"signatures": dict(entry.signatures)} if entry.signatures else {}
    return {"checksum": entry.checksum, "data": entry.data, "materials": pins, **signed}


def _pretty(value: Any, depth: int, *, item: bool = False) -> str:
    """Indented JSON, except that an item of a list that holds nothing nested is one line."""
    nested = isinstance(value, Mapping | list | tuple) and len(value) > 0
    if not nested or (item and _flat(value)):
        return _text(value)
    inner = "  " * (depth + 1)
    if isinstance(value, Mapping):
        parts = [f"{_text(key)}: {_pretty(value[key], depth + 1)}" for key in sorted(value)]
        opening, closing = "{", "}"
    else:
        parts = [_pretty(each, depth + 1, item=True) for each in value]
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(inner + part for part in parts) + "\n" + "  " * depth + closing


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=dict)


def _flat(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    return not any(isinstance(item, Mapping | list | tuple) for item in items)
