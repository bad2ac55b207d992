"""The memory of the last evaluation: how a build in which nothing changed is over before it begins.

One file a recipe and its variables, in the store, written atomically. It is pure cache: losing it
costs time, and nothing in it is believed that a `stat` does not bear out. Lines of JSON behind a
checksum:

    1  sha256 of the rest
    2  head: what was read to make the graph (recipe, includes, settings, lock, our own code), as identities
    3  checks: every path of every source with its identity, every output with its size
    4  graph: names in build order, what each needs
    5… one line a node: declaration, lock, sources, result

Only lines 2 and 3 are parsed when nothing changed; lines of nodes are parsed one by one, when one
is asked for. JSON and not marshal or pickle: the checksum shows damage but not malice, and a store
may be shared; the lines that count are few and flat, so it is as quick.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

SCHEMA = 3
Identity = Sequence[int]


class Memory:
    """A memory that was read back. `dirty` are the nodes of which a source or an output is not as it was."""

    def __init__(self, path: str, lines: list[bytes], head: dict[str, Any]) -> None:
        self.path = path
        self.head = head
        self._lines = lines
        self._graph: dict[str, Any] | None = None
        self._dirty: tuple[set[int], set[int]] | None = None

    def current(self, paths: Sequence[str]) -> bool:
        """Whether the graph was made from these files (recipe, lock, settings), and they are as they were."""
        before: list[list[Any]] = self.head["inputs"]
        if [path for path, _ in before] != list(paths):
            return False
        return all(found(path) == was for path, was in (*before, *self.head["includes"]))

    @cached_property
    def same_code(self) -> bool:
        """Whether it was written by the code that runs now."""
        return bool(self.head["code"] == code_stamp())

    @property
    def dirty(self) -> set[int]:
        """Nodes with a changed source, with an output that is no longer stored, or without a result."""
        sources, outputs = self.changes
        return sources | outputs | set(self.head["unknown"])

    @property
    def changes(self) -> tuple[set[int], set[int]]:
        """The two kinds of dirty nodes, apart; every stat of a null build is here."""
        if self._dirty is None:
            checks = self.checks()
            self._dirty = _changed_sources(*checks["sources"]), self._lost_outputs(*checks["outputs"])
        return self._dirty

    @property
    def names(self) -> list[str]:
        """The nodes in build order."""
        return list(self._shape["names"])

    @property
    def deps(self) -> list[list[int]]:
        """What each needs."""
        return list(self._shape["deps"])

    def closure(self, nodes: Iterable[int]) -> set[int]:
        """These nodes and everything they need."""
        deps, seen, todo = self._shape["deps"], set(nodes), list(nodes)
        while todo:
            for i in deps[todo.pop()]:
                if i not in seen:
                    seen.add(i)
                    todo.append(i)
        return seen

    def checks(self) -> Any:
        """`sources` and `outputs`, as columns: node, path, identity or size."""
        return json.loads(self._lines[1])

    def node(self, index: int) -> Any:
        """The line of one node."""
        return json.loads(self._lines[3 + index])

    def result(self, index: int) -> tuple[str, Any]:
        """The kind of a node and its result (see `remember`), None when it has none."""
        line = self.node(index)
        return line[0][1], line[4]

    def raw(self, index: int) -> bytes:
        """The same, as it is written."""
        return self._lines[3 + index]

    def age(self, now: float) -> float:
        """Seconds since `touch`, or since it was written."""
        return now - os.stat(self.path).st_mtime  # noqa: PTH116

    def touch(self) -> None:
        """Count as used now."""
        os.utime(self.path)

    @property
    def _shape(self) -> dict[str, Any]:
        if self._graph is None:
            self._graph = json.loads(self._lines[2])
        return self._graph

    def _lost_outputs(self, owners: list[int], paths: list[str], sizes: list[int]) -> set[int]:
        lost: set[int] = set()
        seal, blobs, lstat = self.head["seal"], self.head["blobs"], os.lstat
        for owner, path, size in zip(owners, paths, sizes, strict=True):
            try:
                found = lstat(blobs + path)
            except OSError:
                lost.add(owner)
                continue
            if found.st_size != size or found.st_mtime_ns != seal:
                lost.add(owner)
        return lost


def _changed_sources(owners: list[int], paths: list[str], identities: list[list[int]]) -> set[int]:
    changed: set[int] = set()
    lstat = os.lstat
    for owner, path, before in zip(owners, paths, identities, strict=True):
        try:
            s = lstat(path)
        except OSError:
            changed.add(owner)
            continue
        if [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode] != before:
            changed.add(owner)
    return changed


def place(store: str, recipe: str, variables: Iterable[tuple[str, str]]) -> str:
    """The file that remembers this recipe under these variables, in the store rooted at `store`."""
    asked = json.dumps([os.path.abspath(recipe), sorted(variables)])  # noqa: PTH100
    return f"{store}/memory/{sha256(asked.encode()).hexdigest()[:40]}"


def read(path: str) -> Memory | None:
    """The memory at this path, or None when there is none, or one that is damaged or of another schema."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - pathlib is slower to load than this file to read
            checksum, _, body = stream.read().partition(b"\n")
    except OSError:
        return None
    if sha256(body).hexdigest().encode() != checksum:
        return None
    lines = body.split(b"\n")
    head = json.loads(lines[0])
    return Memory(path, lines, head) if head.get("schema") == SCHEMA else None


def write(path: str, lines: Iterable[bytes]) -> None:
    """Put a memory in place, whole or not at all. What a kill leaves lies in the store's `tmp`."""
    body = b"\n".join(lines)
    folder = os.path.dirname(path)  # noqa: PTH120
    scratch = f"{os.path.dirname(folder)}/tmp"  # noqa: PTH120, S108 - of the store
    for each in (folder, scratch):
        os.makedirs(each, exist_ok=True)  # noqa: PTH103
    temporary = f"{scratch}/memory-{os.getpid()}-{os.urandom(6).hex()}"
    with open(temporary, "wb") as stream:  # noqa: PTH123
        stream.write(sha256(body).hexdigest().encode() + b"\n")
        stream.write(body)
    os.replace(temporary, path)  # noqa: PTH105


def line(value: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode()


def found(path: str) -> list[int] | None:
    """The identity of a file that is read, links followed; None when there is none."""
    try:
        s = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode]


def code_stamp() -> str:
    """What this program is: its files' sizes and times, and the interpreter. An edit forgets every memory."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    found: list[str] = []
    todo = [top]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        todo.append(entry.path)
                elif entry.name.endswith((".py", ".json", ".sh")):
                    s = entry.stat()
                    found.append(f"{entry.path[len(top) :]} {s.st_size} {s.st_mtime_ns}")
    return sha256("\n".join([sys.version, *sorted(found)]).encode()).hexdigest()
