"""Stacks of layers, as every layer node yields one: a canonical JSON list, bottom to top."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import Input, Outputs, Task


def stack_of(task: Task, inputs: Iterable[Input]) -> tuple[LayerRef, ...]:
    """The layers these inputs come to, bottom to top; one that several have counts where it stands first."""
    found: dict[str, LayerRef] = {}
    for one in inputs:
        for ref in _layers(task, one):
            found.setdefault(ref.layer.digest, ref)
    return tuple(found.values())


def layer_outputs(task: Task, tar: Path, index: bytes, below: Sequence[LayerRef] = ()) -> Outputs:
    """The outputs of a layer node: this scratch file (it is moved) and its index, on top of `below`."""
    return stored_outputs(task, LayerRef(task.put_file(tar), task.put_bytes(index)), below)


def stored_outputs(task: Task, layer: LayerRef, below: Sequence[LayerRef] = ()) -> Outputs:
    """The outputs of a layer node whose layer is in the store already."""
    return {"layer": layer.layer, "index": layer.index, "stack": task.put_bytes(dump((*below, layer)))}


def dump(stack: Iterable[LayerRef]) -> bytes:
    """The document of a stack."""
    return dumps([{"layer": ref.layer.json(), "index": ref.index.json()} for ref in stack])


def load(data: bytes) -> tuple[LayerRef, ...]:
    """The stack a document describes. Raises ValueError, KeyError or TypeError when it is none."""
    return tuple(LayerRef(Blob(**item["layer"]), Blob(**item["index"])) for item in loads(data))


def _layers(task: Task, one: Input) -> tuple[LayerRef, ...]:
    if "stack" in one.outputs:
        return load(task.path(one.outputs["stack"]).read_bytes())
    if "layer" in one.outputs:
        return (LayerRef(one.outputs["layer"], one.outputs["index"]),)
    raise InputError(f"{one.name} yields no layer", reason="not-a-layer", hint=f"it is of kind {one.kind}")
