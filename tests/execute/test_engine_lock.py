"""The lock phase: resolved once, read ever after, stale when what it was resolved from is another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kairosbuild.core.errors import HostError, InputError, Problems
from kairosbuild.core.events import Events
from kairosbuild.execute import engine


@pytest.fixture
def pinned(world: Any) -> Any:
    """one (pins x), two (pins y, upstream one) and plain, which pins nothing; evaluated once."""
    world.outside.update(x=b"X1", y=b"Y1")
    world.pin("one", "x")
    world.pin("two", "y", "one")
    world.node("plain", add="p")
    world.settle()
    assert world.run().ok
    return world


def lock(world: Any, update: Any = None) -> tuple[str, ...]:
    world.calls.clear()
    found: tuple[str, ...] = engine.lock(world.request(), world.wiring, Events(), update)
    return found


def entries(world: Any) -> Any:
    return json.loads((world.root / "recipe.lock").read_text())["nodes"]


def test_made_on_the_first_run(pinned: Any) -> None:
    found = entries(pinned)
    assert set(found) == {"one", "two"}, "a node that resolves nothing has no entry"
    assert found["one"]["materials"][0]["uri"] == "file:x"
    assert pinned.text(pinned.run(), "one") == "X1"


def test_read_ever_after(pinned: Any) -> None:
    pinned.outside["x"] = b"X2"
    pinned.node("plain", add="q")
    outcome = pinned.run(locked=True)
    assert pinned.text(outcome, "one") == "X1"
    assert not [call for call in pinned.calls if call.startswith("fetch")]


def test_update_resolves_anew_and_what_stands_on_it(pinned: Any) -> None:
    pinned.outside["x"] = b"X2"
    assert lock(pinned) == ()
    assert lock(pinned, ["one"]) == ("one", "two"), "two was resolved over what one was"
    outcome = pinned.run()
    assert pinned.text(outcome, "one") == "X2"
    assert lock(pinned, []) == ("one", "two"), "no names are all names"


def test_update_of_an_unknown_node(pinned: Any) -> None:
    with pytest.raises(InputError) as caught:
        lock(pinned, ["on"])
    assert caught.value.reason == "unknown-node"


def test_locked_refuses_what_is_stale_or_missing(pinned: Any) -> None:
    pinned.outside["z"] = b"Z"
    pinned.pin("one", "z")
    pinned.pin("three", "z")
    with pytest.raises(Problems) as caught:
        pinned.run(locked=True)
    told = {problem.reason for problem in caught.value.problems}
    assert told == {"lock-stale", "lock-missing"}
    assert all("kbuild lock" in problem.hint for problem in caught.value.problems)
    before = entries(pinned)
    assert pinned.run().ok and set(entries(pinned)) == {"one", "two", "three"} != set(before)
    assert pinned.run(locked=True).ok


def test_stale_when_upstream_is_another(pinned: Any) -> None:
    pinned.node("plain", add="q")
    assert lock(pinned) == ()
    pinned.kinds["pin"].version = 2
    assert lock(pinned) == ("one", "two")


def test_entries_of_nodes_that_are_gone_are_dropped(pinned: Any) -> None:
    pinned.nodes = [node for node in pinned.nodes if node.name != "two"]
    pinned.pin("three", "y")
    assert pinned.run().ok and set(entries(pinned)) == {"one", "three"}


def test_only_what_is_asked_for_is_resolved(world: Any) -> None:
    world.outside["x"] = b"X"
    world.pin("one", "x")
    world.pin("far", "nowhere")
    assert world.run("one").ok and set(entries(world)) == {"one"}
    world.settle()
    assert world.run("one").ok
    world.outside["nowhere"] = b"N"
    assert world.run().ok and set(entries(world)) == {"one", "far"}


def test_a_lost_material_is_fetched_again(pinned: Any) -> None:
    outcome = pinned.run()
    pinned.store.cas.path(outcome.outputs("one")["file"].digest).unlink()
    assert pinned.text(pinned.run(), "one") == "X1"


def test_a_material_that_is_another_now(pinned: Any) -> None:
    outcome = pinned.run()
    pinned.store.cas.path(outcome.outputs("one")["file"].digest).unlink()
    pinned.outside["x"] = b"not what was pinned"
    assert pinned.run().failed["one"].reason == "wrong-digest"


def test_a_lock_file_of_somebody_else_counts(pinned: Any) -> None:
    pinned.settle()
    pinned.run()
    pinned.run()
    assert pinned.calls == []
    path = pinned.root / "recipe.lock"
    path.write_text(path.read_text().replace('"toolchain": {}', '"toolchain":  {}'))
    assert pinned.run().ok and "recipe" in pinned.calls
    path.write_text("{")
    with pytest.raises(InputError) as caught:
        pinned.run()
    assert caught.value.reason == "lock-damaged"


def test_tools_for_locking_are_built(world: Any) -> None:
    layers: list[bytes] = []
    original = world.kinds["pin"].lock

    def resolve(spec: Any, locker: Any) -> Any:
        layers.append(locker.path(locker.tools("apt")).read_bytes())
        assert [kind for kind, _, _ in locker.upstream("on")] == ["pin"] * (spec.what == "y")
        return original(spec, locker)

    world.kinds["pin"].lock = resolve
    world.outside.update(x=b"X", y=b"Y")
    world.pin("one", "x")
    world.pin("two", "y", "one")
    outcome = world.run()
    assert layers == [b"tools of apt"] * 2 and not outcome.has("tools:apt")
    assert "apt" in json.loads((world.root / "recipe.lock").read_text())["toolchain"]


def test_what_fails_to_resolve_fails_the_run(world: Any) -> None:
    def down(uri: str, *, digest: str | None = None, size: int | None = None) -> Any:
        raise HostError("no mirror", reason="mirror-down")

    world.fetch = down
    world.pin("one", "x")
    with pytest.raises(HostError):
        world.run()
