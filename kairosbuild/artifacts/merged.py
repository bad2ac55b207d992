"""A stack as one tree: for whoever wants a single root rather than layers."""

from __future__ import annotations

from kairosbuild.artifacts.stack import Stack
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import Outputs, Task

VERSION = 1


def merged(task: Task, stack: Stack) -> LayerRef:
    """The layer that shows what the stack shows, made once for it."""
    refs = [one.ref for one in stack.layers]

    def make() -> Outputs:
        from kairosbuild.oci.merge import merge

        path = task.scratch / "root.tar"
        opened = list(zip((task.path(one.layer) for one in refs), stack.indexes, strict=True))
        with path.open("xb") as out:
            index = merge(opened, out, task.epoch)
        return {"layer": task.put_file(path), "index": task.put_bytes(index)}

    preimage = {"layers": [one.layer.digest for one in refs], "epoch": task.epoch}
    made = task.derive("merged-root", VERSION, preimage, make)
    return LayerRef(made["layer"], made["index"])


def single(task: Task, stack: Stack) -> Stack:
    """The stack of one layer that shows the same."""
    ref = merged(task, stack)
    layers = [{"name": "root", "layer": ref.layer.json(), "index": ref.index.json()}]
    return Stack(task, {**stack.document, "layers": layers})
