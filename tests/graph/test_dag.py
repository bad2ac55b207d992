"""Order, cycles, paths: what networkx is asked for, and the plain graph that everything else walks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairosbuild.core.errors import InputError, Origin
from kairosbuild.graph import dag
from kairosbuild.graph.graph import Graph
from kairosbuild.graph.query import ask

SAMPLE = {
    "base": (),
    "system": ("base",),
    "kernel": ("base",),
    "site": (),
    "os": ("base", "system", "kernel", "site"),
    "disk": ("os",),
}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Acyclic graphs whose nodes are declared in any order."""
    count = draw(st.integers(1, 12))
    edges = {
        f"n{i}": tuple(f"n{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=4)))) if i else ()
        for i in range(count)
    }
    return {name: edges[name] for name in draw(st.permutations(list(edges)))}


@given(graphs())
def test_order_and_deps(edges: dict[str, tuple[str, ...]]) -> None:
    graph = dag.build(edges)
    assert sorted(graph.names) == sorted(edges)
    for i, name in enumerate(graph.names):
        assert {graph.names[j] for j in graph.deps[i]} == set(edges[name])
        assert all(j < i for j in graph.deps[i])
        assert all(i in graph.deps[j] for j in graph.rdeps[i])
    assert graph == dag.build(dict(edges)), "the same declarations give the same order"


@given(graphs(), st.data())
def test_closures_agree_with_networkx(edges: dict[str, tuple[str, ...]], data: st.DataObject) -> None:
    graph = dag.build(edges)
    name = data.draw(st.sampled_from(sorted(edges)))
    i = graph.index[name]
    assert {graph.names[j] for j in graph.closure([i])} == dag.deps(edges, name) | {name}
    assert {graph.names[j] for j in graph.dependants([i])} == dag.rdeps(edges, name) | {name}
    assert graph.closure(range(len(graph.names))) == list(range(len(graph.names)))


@given(graphs())
def test_longest_remaining_path(edges: dict[str, tuple[str, ...]]) -> None:
    graph = dag.build(edges)
    seconds = {i: float(i % 5) for i in range(len(graph.names))}

    def longest(i: int) -> float:
        return seconds[i] + max((longest(j) for j in graph.rdeps[i]), default=0.0)

    assert graph.remaining(seconds) == {i: longest(i) for i in seconds}


def test_remaining_path_among_some() -> None:
    graph = Graph(("a", "b", "c"), ((), (0,), (1,)))
    assert graph.remaining({0: 1.0, 2: 4.0}) == {0: 1.0, 2: 4.0}


def test_cycle_is_a_path_with_its_place() -> None:
    edges = {"z": ("c",), "a": ("b",), "b": ("c",), "c": ("a",)}
    with pytest.raises(InputError) as caught:
        dag.build(edges, {"a": Origin("r.yaml", 3, 5)})
    assert caught.value.reason == "cycle" and str(caught.value.origin) == "r.yaml:3:5"
    assert "a → b → c → a" in caught.value.message
    assert dag.cycle(edges) == ("a", "b", "c", "a")
    assert dag.cycle({"a": ("a",)}) == ("a", "a")
    assert dag.cycle(SAMPLE) == ()


@pytest.mark.parametrize(
    ("question", "nodes", "answer"),
    [
        ("deps", ["os"], ("base", "system", "kernel", "site")),
        ("deps", ["base"], ()),
        ("rdeps", ["kernel"], ("os", "disk")),
        ("somepath", ["disk", "base"], ("disk", "os", "base")),
        ("somepath", ["base", "disk"], ()),
        ("somepath", ["base", "base"], ("base",)),
    ],
)
def test_questions(question: str, nodes: list[str], answer: tuple[str, ...]) -> None:
    assert ask(SAMPLE, question, nodes) == answer


@pytest.mark.parametrize(
    ("question", "nodes", "reason", "hint"),
    [
        ("rdep", ["os"], "bad-query", "rdeps"),
        ("deps", ["os", "base"], "bad-query", ""),
        ("deps", ["kernl"], "unknown-node", "kernel"),
    ],
)
def test_bad_questions(question: str, nodes: list[str], reason: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(SAMPLE, question, nodes)
    assert caught.value.reason == reason and hint in caught.value.hint
