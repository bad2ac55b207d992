"""Plan and why: what would run and the reason, without running it."""

from __future__ import annotations

from typing import Any

import pytest

from kairosbuild.core.errors import KbuildError, Problems
from kairosbuild.execute import userns


@pytest.fixture
def chain(world: Any) -> Any:
    world.file("a.txt", "A1")
    world.node("a", src={"x": "a.txt"})
    world.node("b", "a", first=1)
    world.node("c", "b", add="C")
    world.settle()
    return world


def states(world: Any) -> dict[str, str]:
    return {name: one.state for name, one in world.plan().items()}


def test_before_the_first_run(chain: Any) -> None:
    plan = chain.plan()
    assert states(chain) == {"a": "run", "b": "wait", "c": "wait"}
    assert plan["a"].reasons == ("it was never built here",) and plan["b"].waits == ("a",)
    assert chain.ran == [], "a plan runs nothing"


def test_after_it_all_are_hits(chain: Any) -> None:
    chain.run()
    assert {(one.state, one.where) for one in chain.plan().values()} == {("hit", "memory")}
    for file in (chain.store.root / "memory").iterdir():
        file.unlink()
    assert {(one.state, one.where) for one in chain.plan().values()} == {("hit", "local")}


def test_a_changed_source(chain: Any) -> None:
    chain.run()
    chain.file("a.txt", "B1")
    assert states(chain) == {"a": "run", "b": "wait", "c": "wait"}
    assert chain.why("a") == ("the file src.x changed",)
    assert chain.why("c") == ("waits for b", "a: the file src.x changed")
    chain.run()
    assert chain.why("c") == ()
    chain.file("a.txt", "A1")
    assert set(states(chain).values()) == {"hit"}


def test_a_plan_sees_early_cutoff(chain: Any) -> None:
    chain.run()
    chain.file("a.txt", "A2")
    chain.run("b")
    assert states(chain) == {"a": "hit", "b": "hit", "c": "hit"}


def test_a_changed_field(chain: Any) -> None:
    chain.run()
    chain.node("c", "b", add="D")
    assert chain.why("c") == ("the field add: C → D",)
    assert chain.why("b") == ()


def test_an_evicted_result(chain: Any) -> None:
    outcome = chain.run()
    chain.store.cas.path(outcome.outputs("c")["file"].digest).unlink()
    assert chain.why("c") == ("its result was evicted from the store (file missing)",)


def test_why_speaks_of_the_last_result_not_the_last_built(chain: Any) -> None:
    chain.run()
    chain.node("c", "b", add="D")
    chain.run()
    chain.node("c", "b", add="C")
    assert chain.run().hits == 1
    chain.node("c", "b", add="E")
    assert chain.why("c") == ("the field add: C → E",)


def test_tools_trees_are_planned_too(world: Any) -> None:
    world.node("a", needs=["cc"])
    assert states(world) == {"tools:cc": "run", "a": "wait"}


def test_only_what_is_asked_about(chain: Any) -> None:
    chain.node("z", add="z")
    assert set(chain.plan("b")) == {"a", "b"}


def test_what_kinds_see_beside_the_recipe_is_told_before_anything_runs(chain: Any) -> None:
    chain.node("late", "c", add="told early")
    chain.node("later", "c", add="told early", first=2)
    for ask in (chain.run, chain.plan):
        with pytest.raises(Problems) as caught:
            ask()
        assert [one.message for one in caught.value.problems] == ["late would fail", "later would fail"]
    assert chain.executor.ran == []
    chain.run("c")
    chain.file("excuse", "")
    assert chain.run().built == 2
    (chain.root / "excuse").unlink()
    assert chain.run().built == 0, "what is as it was is not asked"


def test_what_outputs_that_are_there_tell_is_told_before_anything_runs(world: Any) -> None:
    world.outside["said"] = b"17"
    world.pin("said", "said")
    world.node("late", "said", add="asks")
    world.settle()
    assert states(world) == {"said": "run", "late": "wait"}, "nothing is known of what is not there"
    world.run("said")
    for ask in (world.run, world.plan):
        with pytest.raises(KbuildError) as caught:
            ask()
        assert caught.value.message == "late would fail of 17"
        for file in (world.store.root / "memory").iterdir():
            file.unlink()  # a plan finds it in the store as well; a run has to look first
    assert world.executor.ran == []


def test_what_takes_every_owner_is_refused_where_there_is_one(
    chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.run()
    chain.node("d", "c", add="D")
    monkeypatch.setattr(userns, "alone", lambda: True)
    assert chain.plan()["d"].state == "run"
    monkeypatch.setattr(type(chain.kinds["join"]), "every_owner", True, raising=False)
    for ask in (chain.run, chain.plan):
        with pytest.raises(KbuildError) as caught:
            ask()
        assert caught.value.reason == "no-subuids" and "d takes every owner" in caught.value.message
    monkeypatch.setattr(userns, "alone", lambda: False)
    assert chain.run().built == 1
