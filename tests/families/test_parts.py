"""How a set is cut: parts are closed, cover the set, and keep what an edit behind them leaves alone."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from kairosbuild.families.parts import cut, parts_of
from kairosbuild.graph.node import Locked, Material

NAMES = [f"p{number}" for number in range(120)]
graphs = st.fixed_dictionaries({name: st.lists(st.sampled_from(NAMES), max_size=2) for name in NAMES})


@given(
    graphs,
    st.lists(st.sampled_from(NAMES), unique=True),
    st.sets(st.sampled_from(NAMES)),
    st.sets(st.sampled_from(NAMES)),
)
def test_each_part_needs_only_itself_and_those_before(
    needs: dict[str, list[str]], asked: list[str], first: set[str], stray: set[str]
) -> None:
    chosen = _closure(needs, {*asked, *first, *stray})
    parts = cut(asked, chosen, needs.__getitem__, sorted(first))
    assert sorted(name for part in parts for name in part) == sorted(chosen)
    there: set[str] = set()
    for part in parts:
        there |= set(part)
        assert all(there.issuperset(needs[name]) for name in part)
    assert first <= set(*parts[:1])


@given(graphs, st.permutations(NAMES), st.integers(1, 119))
def test_what_is_asked_for_later_moves_nothing_before_it(
    needs: dict[str, list[str]], asked: list[str], kept: int
) -> None:
    def parts(names: list[str]) -> list[list[str]]:
        return cut(names, _closure(needs, names), needs.__getitem__)

    before, after = parts(asked[:kept]), parts(asked)
    assert before[:-1] == after[: len(before) - 1]


def test_a_small_set_is_one_part_and_a_large_one_several() -> None:
    assert len(cut(NAMES[:20], NAMES[:20], lambda _: ())) == 1
    assert [len(part) for part in cut(NAMES, NAMES, lambda _: ())] == [20] * 6
    assert cut([], [], lambda _: ()) == []


def test_names_that_stand_for_others_are_followed() -> None:
    chosen = ["real", "tool", "stray"]
    needs = {"tool": ["virtual"], "virtual": ["real"]}
    assert cut(["tool"], chosen, lambda name: needs.get(name, [])) == [sorted(chosen)]


def test_a_part_of_a_lock_has_its_own_rows() -> None:
    rows = [{"name": name, "digest": name} for name in "abc"]
    materials = tuple(Material(name, name, 1) for name in "abc")
    data = {"packages": rows, "asked": ["a", "c"], "removed": ["x"], "parts": [["b", "c"], ["a"]], "more": 1}
    first, second = parts_of(Locked(data, materials))
    assert [m.uri for m in first.materials] == ["b", "c"] and first.data["asked"] == ["c"]
    assert (first.data["removed"], second.data["removed"]) == (["x"], [])
    assert [row["name"] for row in second.data["packages"]] == ["a"] and second.data["more"] == 1
    one = Locked({**data, "parts": [["a", "b", "c"]]}, materials)
    assert parts_of(one) == [one]


def _closure(needs: dict[str, list[str]], names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    todo = list(names)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += needs[name]
    return found
