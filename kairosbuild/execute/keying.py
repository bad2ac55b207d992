"""A node's preimage out of the work: its inputs' outputs, its sources, its tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kairosbuild.core.digest import Blob
from kairosbuild.execute.nodes import TOOLS, Node, Work, platform_of
from kairosbuild.execute.selection import bare
from kairosbuild.execute.snapshot import Hasher, Snapshot, take
from kairosbuild.graph.keys import names_matter, preimage
from kairosbuild.graph.node import Input, Outputs, Reads


def document(work: Work, node: Node) -> dict[str, Any]:
    """The preimage. Inputs have results, and sources have been looked at."""
    assert node.snapshots is not None, node.name
    return preimage(
        node.kind,
        node.declaration,
        platform=platform_of(node.declaration, work.platform),
        epoch=work.epoch,
        inputs=inputs(work, node),
        sources={role: one.files for role, one in node.snapshots.items()},
        locked=node.locked,
        tools=tools(work, node),
    )


def inputs(work: Work, node: Node) -> dict[str, tuple[Input, ...]]:
    """The node's inputs by role. A name that does not reach the key does not reach the build either.

    Nor does the cell of a matrix: a node in a cell is what it would be in a recipe without a matrix.
    """
    found = {}
    for role, names in node.declaration.refs.items():
        named = names_matter(node.kind.Spec, role)
        found[role] = tuple(
            Input(bare(name) if named else role, work.named(name).declaration.kind, outputs(work, name))
            for name in names
        )
    return found


def tools(work: Work, node: Node) -> dict[str, Blob]:
    """The tools trees of a node by purpose: the layer of each."""
    return {purpose: outputs(work, TOOLS + purpose)["layer"] for purpose in node.tools}


def outputs(work: Work, name: str) -> Outputs:
    """The outputs of a node that has a result."""
    result = work.named(name).result
    assert result is not None, name
    return result.outputs


def snapshots(root: str, node: Node, hasher: Hasher) -> dict[str, Snapshot]:
    """The node's sources by role, as they are now. InputErrors as of `snapshot.take`."""
    declaration = node.declaration
    found = {}
    for role, path in declaration.sources.items():
        found[role] = take(root, path, hasher, declaration.origin, _reads(root, node, role))
    return found


def _reads(root: str, node: Node, role: str) -> Reads | None:
    """What of a source counts, if the kind says so."""
    ask = getattr(node.kind, "reads", None)
    if ask is None:
        return None
    sources = {name: Path(root, path) for name, path in node.declaration.sources.items()}
    answer: Reads | None = ask(node.spec, role, sources)
    return answer
