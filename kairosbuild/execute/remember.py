"""Between nodes and the lines of the memory: written after an evaluation, read back for the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import Origin
from kairosbuild.execute import memo
from kairosbuild.execute.nodes import Node, Result, Work
from kairosbuild.execute.snapshot import Snapshot, young
from kairosbuild.graph.graph import Graph
from kairosbuild.graph.node import Kind, Locked, Material, SourceFile
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.cas import SEAL

_NEVER = [-1, 0, 0, 0, 0, 0]  # an identity that nothing has: look again the next time


class Remembered(Mapping[int, Node]):
    """The nodes of a memory, each made when it is first asked for."""

    def __init__(self, memory: memo.Memory, kinds: Mapping[str, Kind]) -> None:
        self._memory, self._kinds = memory, kinds
        self._count = len(memory.names)
        self._changed = memory.changes[0]
        self.made: dict[int, Node] = {}

    def __getitem__(self, index: int) -> Node:
        if index not in self.made:
            if not 0 <= index < self._count:
                raise KeyError(index)
            node = node_of(self._memory.node(index), self._kinds)
            if index in self._changed:
                node.snapshots = None
            self.made[index] = node
        return self.made[index]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._count))

    def __len__(self) -> int:
        return self._count


def graph_of(memory: memo.Memory) -> Graph:
    """The graph of a memory."""
    return Graph(tuple(memory.names), tuple(map(tuple, memory.deps)))


def write(
    path: str, work: Work, head: Mapping[str, Any], blobs: str, before: memo.Memory | None = None
) -> None:
    """Remember the work as it stands. Nodes that were never made from `before` keep their lines."""
    nodes = work.nodes
    made = nodes.made if isinstance(nodes, Remembered) else nodes
    count = len(work.graph.names)
    lines = [memo.line(_line(made[i])) if i in made else _raw(before, i) for i in range(count)]
    sources, outputs = _checks(made, _checks_before(before, made) if isinstance(nodes, Remembered) else None)
    names, deps = work.graph.names, work.graph.deps
    unknown = {i for i, node in made.items() if node.result is None}
    if before is not None and isinstance(nodes, Remembered):
        unknown |= {i for i in before.head["unknown"] if i not in made}
    complete = {
        **head,
        "schema": memo.SCHEMA,
        "code": memo.code_stamp(),
        "seal": SEAL,
        "blobs": blobs,
        "unknown": sorted(unknown),
        "total": count,
    }
    memo.write(
        path,
        [
            memo.line(complete),
            memo.line({"sources": sources, "outputs": outputs}),
            memo.line({"names": names, "deps": deps}),
            *lines,
        ],
    )


def _raw(before: memo.Memory | None, index: int) -> bytes:
    assert before is not None
    return before.raw(index)


Columns = tuple[list[Any], list[Any], list[Any]]


def _checks_before(before: memo.Memory | None, made: Collection[int]) -> tuple[Columns, Columns]:
    """The rows of the nodes that were not touched."""
    assert before is not None
    old = before.checks()
    return _without(old["sources"], made), _without(old["outputs"], made)


def _without(columns: Sequence[list[Any]], owners: Collection[int]) -> Columns:
    kept = [row for row in zip(*columns, strict=True) if row[0] not in owners]
    first, second, third = map(list, zip(*kept, strict=True)) if kept else ([], [], [])
    return first, second, third


def _checks(made: Mapping[int, Node], old: tuple[Columns, Columns] | None) -> tuple[Columns, Columns]:
    sources, outputs = old or (([], [], []), ([], [], []))
    for i, node in made.items():
        for shot in (node.snapshots or {}).values():
            for path, found in shot.seen:
                _add(sources, i, path, _NEVER if young(found, shot.taken) else found)
        for blob in set(node.result.outputs.values()) if node.result else ():
            _add(outputs, i, f"{blob.digest[7:9]}/{blob.digest[7:]}", blob.size)
    return sources, outputs


def _add(columns: Columns, *row: Any) -> None:
    for column, value in zip(columns, row, strict=True):
        column.append(value)


def _line(node: Node) -> list[Any]:
    d, locked, result = node.declaration, node.locked, node.result
    origin = [d.origin.file, d.origin.line, d.origin.column] if d.origin else None
    return [
        [d.name, d.kind, d.spec, d.refs, d.sources, d.hints, origin, d.platform],
        node.tools,
        [locked.data, [[m.uri, m.digest, m.size] for m in locked.materials]],
        None if node.snapshots is None else {role: _shot_line(one) for role, one in node.snapshots.items()},
        [result.key, {name: [b.digest, b.size] for name, b in result.outputs.items()}] if result else None,
        node.seconds,
    ]


def _shot_line(shot: Snapshot) -> list[Any]:
    files = [
        [f.logical, f.type, f.mode, f.blob.digest if f.blob else None, f.blob.size if f.blob else 0, f.target]
        for f in shot.files
    ]
    return [shot.base, files, shot.seen, shot.taken]


def node_of(line: Any, kinds: Mapping[str, Kind]) -> Node:
    """The node that a line describes."""
    declared, tools, (data, materials), shots, result, seconds = line
    declaration = declaration_of(declared)
    return Node(
        declaration,
        kinds,
        tuple(tools),
        locked=Locked(data, tuple(Material(*m) for m in materials)),
        result=result_of(result, seconds),
        snapshots=None if shots is None else {role: _shot(one) for role, one in shots.items()},
        seconds=seconds,
    )


def declaration_of(line: Any) -> Declaration:
    """The declaration in a node's line."""
    name, kind, spec, refs, sources, hints, origin, platform = line
    refs = {role: tuple(names) for role, names in refs.items()}
    place = Origin(*origin) if origin else None
    return Declaration(name, kind, spec, refs, sources, hints, place, platform=platform)


def result_of(line: Any, seconds: float | None) -> Result | None:
    """The result in a node's line."""
    if line is None:
        return None
    key, outputs = line
    return Result(key, {name: Blob(*blob) for name, blob in outputs.items()}, seconds or 0.0)


def _shot(line: Any) -> Snapshot:
    base, files, seen, taken = line
    return Snapshot(
        base,
        tuple(SourceFile(lo, ty, mo, Blob(di, si) if di else None, ta) for lo, ty, mo, di, si, ta in files),
        tuple((path, tuple(found)) for path, found in seen),
        taken,
    )


def carry(work: Work, memory: memo.Memory, kinds: Mapping[str, Kind]) -> set[int]:
    """Take over from the memory of an earlier recipe what still holds; gives the nodes it does not."""
    old = Remembered(memory, kinds)
    index = {name: i for i, name in enumerate(memory.names)}
    dirty, rekey = memory.dirty, not memory.same_code
    found: set[int] = set()
    for i, node in work.nodes.items():
        j = index.get(node.name)
        before = None if j is None else old[j]
        if before is None:
            found.add(i)
            continue
        node.seconds, node.result = before.seconds, before.result
        if before.declaration.sources == node.declaration.sources:
            node.snapshots = before.snapshots
        if j in dirty or rekey or not _same(node, before):
            found.add(i)
    return found


def _same(node: Node, before: Node) -> bool:
    return (
        before.result is not None
        and _plain(node.declaration) == _plain(before.declaration)
        and node.locked == before.locked
        and node.tools == before.tools
    )


def _plain(declaration: Declaration) -> Any:
    """A declaration as it comes back from JSON, where a tuple is a list."""
    return [_listed(getattr(declaration, f.name)) for f in dataclasses.fields(declaration) if f.compare]


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
