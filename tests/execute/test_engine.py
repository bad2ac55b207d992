"""The engine on test kinds: what runs, what does not, and what is remembered."""

from __future__ import annotations

from typing import Any


def test_builds_in_order_and_then_nothing(world: Any) -> None:
    world.file("a.txt", "A")
    world.settle()
    world.node("a", src={"x": "a.txt"})
    world.node("b", "a", add="B")
    world.settle()
    outcome = world.run()
    assert outcome.ok and world.text(outcome, "b") == "AB"
    assert world.ran == ["a", "b"]
    again = world.run()
    assert world.calls == [] and world.ran == [], "a null build asks for nothing"
    assert world.text(again, "b") == "AB" and again.unchanged == 2
