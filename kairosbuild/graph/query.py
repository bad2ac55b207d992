"""Questions about the graph: what a node needs, what needs it, and why the two are connected."""

from __future__ import annotations

from collections.abc import Sequence

from kairosbuild.core.errors import InputError, nearest
from kairosbuild.graph import dag

QUESTIONS = {"deps": 1, "rdeps": 1, "somepath": 2}
"""Question → how many nodes it takes."""


def ask(edges: dag.Edges, question: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """The answer as names: in the recipe's order for deps and rdeps, along the path for somepath.

    InputErrors: `unknown-node`, `bad-query`. An empty answer is an answer.
    """
    takes = QUESTIONS.get(question)
    if takes is None:
        hint = nearest(question, QUESTIONS)
        raise InputError(f"no such question: {question}", reason="bad-query", hint=hint)
    if len(nodes) != takes:
        raise InputError(f"{question} asks about {takes} node(s), not {len(nodes)}", reason="bad-query")
    for name in nodes:
        if name not in edges:
            raise InputError(f"no node {name!r}", reason="unknown-node", hint=nearest(name, edges))
    if question == "somepath":
        return dag.somepath(edges, nodes[0], nodes[1])
    found = (dag.deps if question == "deps" else dag.rdeps)(edges, nodes[0])
    return tuple(name for name in edges if name in found)
