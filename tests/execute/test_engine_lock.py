"""The lock phase: resolved once, read ever after, stale when what it was resolved from is another."""

from __future__ import annotations

import json
from dataclasses import replace
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
    found: tuple[str, ...] = engine.lock(world.request(), world.wiring, Events(), update).resolved
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


def given(world: Any, **values: str) -> None:
    """As if --set gave these values, which `one` depends on and so `two` does."""
    world.nodes = [
        replace(node, given=values) if node.name in ("one", "two") else node for node in world.nodes
    ]


def test_every_set_of_values_has_entries_of_its_own(pinned: Any) -> None:
    plain = entries(pinned)
    given(pinned, v="b")
    pinned.outside["z"] = b"Z"
    pinned.nodes = [
        replace(node, spec={"what": "z"}) if node.name == "one" else node for node in pinned.nodes
    ]
    assert pinned.run(vars={"v": "b"}).ok
    found = entries(pinned)
    assert set(found) == {"one", "two", "one --set v=b", "two --set v=b"}
    assert {name: found[name] for name in plain} == plain, "the other values' entries are left alone"
    assert pinned.run(vars={"v": "b"}, locked=True).ok
    given(pinned)
    pinned.pin("one", "x")
    pinned.pin("two", "y", "one")
    pinned.outside.clear()
    assert pinned.run(locked=True).ok, "alternating resolves nothing"
    assert entries(pinned) == found


def test_a_missing_lock_names_the_command_with_its_values(pinned: Any) -> None:
    given(pinned, v="a b")
    with pytest.raises(Problems) as caught:
        pinned.run(vars={"v": "a b"}, locked=True)
    hints = {problem.hint for problem in caught.value.problems}
    assert len(hints) == 1 and hints.pop().endswith("recipe.yaml --set 'v=a b'")


def test_entries_of_variables_that_are_gone_are_dropped(pinned: Any) -> None:
    given(pinned, v="b")
    assert pinned.run(vars={"v": "b"}).ok and "one --set v=b" in entries(pinned)
    given(pinned)
    pinned.settable = frozenset()
    lock(pinned, ["one"])
    assert set(entries(pinned)) == {"one", "two"}


def test_the_first_lock_is_told(world: Any) -> None:
    def notes() -> list[str]:
        return [event.data["message"] for event in world.events if event.type == "note"]

    world.outside.update(x=b"X1", y=b"Y1")
    world.pin("one", "x")
    assert world.run().ok and len(notes()) == 1 and "no lock yet" in notes()[0] and "one" in notes()[0]
    assert world.run().ok and notes() == []
    world.pin("two", "y")
    assert world.run().ok and "resolved two" in notes()[0]


def test_only_telling_writes_nothing(pinned: Any) -> None:
    before = (pinned.root / "recipe.lock").read_bytes()
    pinned.outside["x"] = b"X2"
    done = engine.lock(pinned.request(), pinned.wiring, Events(), [], write=False)
    assert done.resolved == ("one", "two") and done.before != done.after
    assert (pinned.root / "recipe.lock").read_bytes() == before
    assert engine.lock(pinned.request(), pinned.wiring, Events(), []).after == done.after


def test_what_is_fetched_while_building_is_in_the_lock(pinned: Any) -> None:
    pins = {pin["uri"] for entry in entries(pinned).values() for pin in entry["materials"]}
    asked: list[str] = []
    original = pinned.materials

    def materials(wanted: Any) -> None:
        asked.extend(one.uri for one in wanted)
        original(wanted)

    pinned.materials = materials
    for node in ("one", "two"):
        pinned.store.cas.path(pinned.run().outputs(node)["file"].digest).unlink()
    assert pinned.run().ok and set(asked) == pins


def test_another_run_locked_other_nodes_meanwhile(pinned: Any) -> None:
    pinned.outside["z"] = b"Z"
    pinned.pin("three", "z")
    path = pinned.root / "recipe.lock"
    original = pinned.kinds["pin"].lock

    def resolve(spec: Any, locker: Any) -> Any:
        document = json.loads(path.read_text())
        document["nodes"]["one"]["data"] = {"packages": [["x", "another"]]}
        path.write_text(json.dumps(document))
        return original(spec, locker)

    pinned.kinds["pin"].lock = resolve
    assert pinned.run("three").ok
    assert entries(pinned)["one"]["data"] == {"packages": [["x", "another"]]}
    assert "three" in entries(pinned)
