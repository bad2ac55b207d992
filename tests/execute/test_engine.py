"""The engine on test kinds: what runs, what does not, and what is remembered."""

from __future__ import annotations

import _thread
import dataclasses
import os
import sqlite3
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kairosbuild.core.errors import HostError, InputError, Problems
from kairosbuild.store.record import Record


@pytest.fixture
def chain(world: Any) -> Any:
    """a (reads a.txt) → b (keeps one byte of it) → c, and d apart; evaluated once."""
    world.file("a.txt", "A1")
    world.file("d.txt", "D")
    world.node("a", src={"x": "a.txt"})
    world.node("b", "a", first=1)
    world.node("c", "b", add="C")
    world.node("d", src={"x": "d.txt"})
    world.settle()
    assert world.run().ok
    assert world.ran == ["a", "b", "c", "d"]
    return world


def test_nothing_changed_asks_for_nothing(chain: Any) -> None:
    outcome = chain.run()
    assert chain.calls == [] and chain.ran == []
    assert chain.text(outcome, "c") == "AC" and outcome.unchanged == outcome.total == 4
    assert outcome.kind("c") == "join" and len(outcome.key("c")) == 64
    assert (outcome.name, outcome.epoch, outcome.platform) == ("test", 0, "linux/amd64")


def test_a_changed_source_runs_what_needs_it(chain: Any) -> None:
    chain.file("a.txt", "B1")
    outcome = chain.run()
    assert chain.ran == ["a", "b", "c"] and chain.text(outcome, "c") == "BC"
    assert "recipe" not in chain.calls, "the recipe did not change, so nobody reads it"
    chain.settle()
    chain.run()
    assert chain.run().unchanged == 4 and chain.calls == []


def test_early_cutoff_stops_the_wave(chain: Any) -> None:
    chain.file("a.txt", "A2")
    outcome = chain.run()
    assert chain.ran == ["a", "b"], "b came out as before, so c has nothing to do"
    assert chain.text(outcome, "c") == "AC"


def test_a_touched_source_runs_nothing(chain: Any) -> None:
    (chain.root / "a.txt").touch()
    assert chain.run().ok and chain.ran == []
    chain.settle()
    chain.run()
    chain.run()
    assert chain.calls == [], "its new identity is remembered"


def test_back_to_what_was_is_a_hit(chain: Any) -> None:
    chain.file("a.txt", "B1")
    chain.run()
    chain.file("a.txt", "A1")
    outcome = chain.run()
    assert chain.ran == [] and chain.text(outcome, "c") == "AC" and outcome.hits == 3


def test_exec_bit_counts_and_other_bits_do_not(chain: Any) -> None:
    (chain.root / "d.txt").chmod(0o600)
    assert chain.run().ok and chain.ran == []
    (chain.root / "d.txt").chmod(0o755)
    assert chain.run().ok and chain.ran == ["d"]


def test_a_lost_output_is_made_again(chain: Any) -> None:
    outcome = chain.run()
    path = chain.store.cas.path(outcome.outputs("b")["file"].digest)
    path.unlink()
    outcome = chain.run()
    assert chain.ran == ["b"] and chain.text(outcome, "c") == "AC"


@pytest.mark.parametrize("damage", ["truncate", "write"])
def test_a_damaged_output_is_made_again(chain: Any, damage: str) -> None:
    outcome = chain.run()
    path = chain.store.cas.path(outcome.outputs("b")["file"].digest)
    path.chmod(0o644)
    path.write_bytes(b"" if damage == "truncate" else b"x")
    outcome = chain.run()
    assert chain.ran == ["b"] and chain.text(outcome, "c") == "AC"


def test_a_null_build_keeps_its_records_in_use(chain: Any) -> None:
    (file,) = (chain.store.root / "memory").iterdir()
    old = time.time() - 100_000
    os.utime(file, (old, old))
    with sqlite3.connect(chain.store.root / "actions" / "cache.db") as database:
        database.execute("UPDATE Cache SET access_time = ?", (old,))
    assert chain.run().unchanged == 4 and chain.calls == ["store"]
    assert file.stat().st_mtime > old + 90_000
    used = {row[0]: row[1] for row in database.execute("SELECT key, access_time FROM Cache")}
    database.close()
    records = [time for key, time in used.items() if key.startswith("record:")]
    assert len(records) == 4 and min(records) > old + 90_000
    chain.run()
    assert chain.calls == []


def test_losing_the_memory_costs_no_build(chain: Any) -> None:
    for file in (chain.store.root / "memory").iterdir():
        file.unlink()
    outcome = chain.run()
    assert chain.ran == [] and outcome.hits == 4 and "recipe" in chain.calls


def test_a_damaged_memory_costs_no_build(chain: Any) -> None:
    for file in (chain.store.root / "memory").iterdir():
        file.write_bytes(file.read_bytes()[:-20] + b"garbage garbage!!!!!")
    assert chain.run().hits == 4 and chain.ran == []


def test_an_edited_recipe_runs_what_it_must(chain: Any) -> None:
    chain.node("c", "b", add="changed")
    chain.node("e", "c", add="E")
    outcome = chain.run()
    assert chain.ran == ["c", "e"] and chain.text(outcome, "e") == "AchangedE"
    assert outcome.unchanged == 3


def test_edited_code_takes_every_key_anew_and_runs_nothing(
    chain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kairosbuild.execute import memo

    monkeypatch.setattr(memo, "code_stamp", lambda: "another")
    assert chain.run().ok and chain.ran == [] and "recipe" in chain.calls
    monkeypatch.setattr(chain.kinds["join"], "version", 2, raising=False)
    monkeypatch.setattr(memo, "code_stamp", lambda: "a third")
    assert chain.run().ok and chain.ran == ["a", "b", "c", "d"]


def test_only_what_is_asked_for(world: Any) -> None:
    world.node("a", add="A")
    world.node("b", "a", add="B")
    world.node("z", add="Z")
    outcome = world.run("b")
    assert world.ran == ["a", "b"] and outcome.total == 2 and not outcome.has("z")
    world.settle()
    world.run("b")
    assert world.run("b").unchanged == 2 and world.calls == []
    assert world.run().ok and world.ran == ["z"]


def test_what_was_not_asked_for_is_not_taken_for_current(chain: Any) -> None:
    chain.file("a.txt", "B1")
    assert chain.run("b").ok and chain.ran == ["a", "b"]
    outcome = chain.run()
    assert chain.ran == ["c"] and chain.text(outcome, "c") == "BC"


def test_changed_source_of_what_is_not_asked_for_waits(chain: Any) -> None:
    chain.file("d.txt", "D2")
    assert chain.run("c").ok and chain.ran == []
    assert chain.run().ok and chain.ran == ["d"]


def test_edit_and_ask_for_a_part(chain: Any) -> None:
    chain.node("d", src={"x": "d.txt"}, add="more")
    assert chain.run("c").ok and chain.ran == []
    assert chain.run().ok and chain.ran == ["d"]
    chain.node("b", "a", first=2)
    assert chain.run("b").ok and chain.ran == ["b"]
    assert chain.text(chain.run(), "c") == "A1C" and chain.ran == ["c"]


def test_unknown_node_names_the_nearest(chain: Any) -> None:
    chain.node("kernel")
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            chain.run("kernl")
        assert caught.value.reason == "unknown-node" and "kernel" in caught.value.hint
        chain.run()


def test_cycle_is_told_as_a_path(world: Any) -> None:
    world.node("a", "c")
    world.node("b", "a")
    world.node("c", "b")
    with pytest.raises(InputError) as caught:
        world.run()
    assert caught.value.reason == "cycle" and "a → c → b → a" in str(caught.value)


def test_all_missing_sources_at_once(world: Any) -> None:
    world.node("a", src={"x": "no"})
    world.node("b", src={"x": "neither"})
    with pytest.raises(Problems) as caught:
        world.run()
    assert [one.reason for one in caught.value.problems] == ["source-missing"] * 2


def test_a_failure_skips_and_is_not_remembered(world: Any) -> None:
    world.node("a", fails=True)
    world.node("b", "a")
    outcome = world.run()
    assert outcome.failed["a"].reason == "made-to-fail" and outcome.skipped == {"b": "a"}
    assert b"about to fail" in outcome.failed["a"].log
    assert world.run().failed, "a failure is tried again"
    world.node("a", add="good")
    assert world.run().ok and world.ran == ["a", "b"]


def test_a_failure_forgets_what_came_before(chain: Any) -> None:
    chain.node("a", src={"x": "a.txt"}, fails=True)
    assert not chain.run().ok
    assert chain.run().failed.keys() == {"a"} and not chain.run().ok


def test_keep_going_builds_the_rest(world: Any) -> None:
    world.node("bad", fails=True)
    world.node("after", "bad")
    for n in range(4):
        world.node(f"good{n}", add=str(n), pause=1)
    outcome = world.run(keep_going=True, jobs=1)
    assert world.ran == [f"good{n}" for n in range(4)]
    assert outcome.failed.keys() == {"bad"} and outcome.skipped.keys() == {"after"}


def test_without_keep_going_nothing_new_starts(world: Any) -> None:
    world.node("bad", fails=True)
    for n in range(4):
        world.node(f"good{n}", add=str(n))
    outcome = world.run(jobs=1)
    assert outcome.failed.keys() == {"bad"} and world.ran == [] and not outcome.ok


def test_a_bug_in_a_kind_is_a_failure_with_a_name(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.kinds["join"], "build", lambda task: 1 / 0, raising=False)
    world.node("a")
    assert world.run().failed["a"].reason == "kind-error"


def test_parallel_up_to_jobs(world: Any) -> None:
    for n in range(8):
        world.node(f"n{n}", add=str(n), pause=30)
    seen: list[int] = []
    building = threading.Semaphore(0)
    original = world.kinds["join"].build
    lock, now = threading.Lock(), [0]

    def build(task: Any) -> Any:
        with lock:
            now[0] += 1
            seen.append(now[0])
        building.release()
        try:
            return original(task)
        finally:
            with lock:
                now[0] -= 1

    world.kinds["join"].build = build
    assert world.run(jobs=3).ok
    assert max(seen) == 3


def test_the_longest_path_goes_first(world: Any) -> None:
    world.node("short", add="s")
    world.node("long1", add="1")
    world.node("long2", "long1")
    world.node("long3", "long2")
    world.run(jobs=1)
    assert world.executor.ran.index("long1") < world.executor.ran.index("short")


def test_source_that_changes_while_built_is_not_kept(world: Any) -> None:
    world.file("a.txt", "A")
    world.node("a", src={"x": "a.txt"})
    world.settle()
    original = world.kinds["join"].build

    def build(task: Any) -> Any:
        made = original(task)
        world.file("a.txt", "B")
        return made

    world.kinds["join"].build = build
    outcome = world.run()
    assert outcome.failed["a"].reason == "source-changed"
    world.kinds["join"].build = original
    assert world.text(world.run(), "a") == "B"


def test_source_rewritten_with_the_same_bytes_is_kept(world: Any) -> None:
    world.file("a.txt", "A")
    world.node("a", src={"x": "a.txt"})
    world.settle()
    original = world.kinds["join"].build

    def build(task: Any) -> Any:
        world.file("a.txt", "A")
        return original(task)

    world.kinds["join"].build = build
    assert world.run().ok


def test_source_folders(world: Any) -> None:
    world.file("tree/b", "B")
    world.file("tree/sub/a", "A")
    (world.root / "tree/link").symlink_to("b")
    world.node("t", src={"x": "tree"})
    world.settle()
    assert world.text(world.run(), "t") == "BA"
    world.settle()
    world.run()
    world.run()
    assert world.calls == []
    world.file("tree/sub/new", "N")
    assert world.text(world.run(), "t") == "BAN"
    (world.root / "tree/sub/new").unlink()
    assert world.text(world.run(), "t") == "BA" and world.ran == []
    (world.root / "tree/link").unlink()
    (world.root / "tree/link").symlink_to("sub")
    assert world.run().ok and world.ran == ["t"]


def test_sources_stay_in_the_workspace(world: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("s")
    (world.root / "way").symlink_to(outside)
    world.node("a", src={"x": "way/secret"})
    with pytest.raises(InputError) as caught:
        world.run()
    assert caught.value.reason == "source-outside"


def test_special_files_are_refused(world: Any) -> None:
    import os

    os.mkfifo(world.root / "pipe")
    world.node("a", src={"x": "pipe"})
    with pytest.raises(InputError) as caught:
        world.run()
    assert caught.value.reason == "source-special"


def test_tools_trees_are_nodes(world: Any) -> None:
    world.node("a", needs=["cc"], add="!")
    outcome = world.run()
    assert world.text(outcome, "a") == "tools of cc!" and outcome.has("tools:cc")
    assert outcome.total == 2
    world.node("b", add="B")
    world.run()
    assert world.ran == ["b"]


def test_undeclared_tools_are_refused(world: Any) -> None:
    original = world.kinds["join"].build
    world.kinds["join"].build = lambda task: (task.tools("other"), original(task))[1]
    world.node("a")
    assert world.run().failed["a"].reason == "tools-undeclared"


@pytest.mark.parametrize("how", ["signal", "event"])
def test_an_interruption_ends_children_and_keeps_what_was_done(world: Any, how: str) -> None:
    world.node("a", add="A")
    world.node("b", "a", add="B")
    world.node("c", "b")
    world.cancel = threading.Event()
    original = world.kinds["join"].build

    def build(task: Any) -> Any:
        if task.name == "b":
            _thread.interrupt_main() if how == "signal" else world.cancel.set()
            assert world.cancel.wait(5)
            raise HostError("stopped", reason="action-cancelled")
        return original(task)

    world.kinds["join"].build = build
    outcome = world.run()
    assert outcome.interrupted and not outcome.ok and not outcome.failed
    world.kinds["join"].build = original
    world.cancel = None
    assert world.run().ok and world.ran == ["b", "c"]


def test_two_at_once_build_each_node_once(world: Any) -> None:
    for n in range(6):
        world.node(f"n{n}", add=str(n), pause=10)
    done: list[Any] = []
    from kairosbuild.core.events import Events
    from kairosbuild.execute import engine

    def go() -> None:
        done.append(engine.evaluate(world.request(), world.wiring, Events()))

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.ok for one in done) and world.ran == [f"n{n}" for n in range(6)]


class FakeRemote:
    """A shared cache that holds another store's results. `evicted` are blobs it has no longer."""

    name = "shared"

    def __init__(self, theirs: Any, ours: Any, broken: bool = False) -> None:
        self.theirs, self.ours, self.broken = theirs, ours, broken
        self.evicted: set[Any] = set()
        self.brought: list[Any] = []
        self.change = lambda record: record

    def get(self, key: str) -> Any:
        if self.broken:
            raise HostError("down", reason="registry-down")
        record = self.theirs.actions.get(key)
        record = record and self.change(record)
        return (record, frozenset(record.outputs.values())) if record else None

    def bring(self, blobs: Any) -> None:
        for blob in set(blobs) - self.evicted:
            if not self.broken and self.theirs.cas.has(blob):
                self.ours.cas.put_bytes(self.theirs.cas.read(blob))
                self.brought.append(blob)

    def shun(self, key: str, why: str) -> None:
        self.change = lambda record: None


@pytest.fixture
def sharing(chain: Any, tmp_path: Path) -> Any:
    """A second machine, with an empty store, that shares the results of the first."""
    from kairosbuild.store.store import Store

    chain.run()
    theirs, chain.store = chain.store, Store(tmp_path / "other")
    chain.remotes = (FakeRemote(theirs, chain.store, broken=True), FakeRemote(theirs, chain.store))
    chain.executor.store = chain.store
    return chain


def test_a_shared_cache_saves_all_work_and_moves_no_blob(sharing: Any) -> None:
    assert {one.where for one in sharing.plan().values()} == {"shared"}
    outcome = sharing.run()
    assert sharing.ran == [] and outcome.hits == 4
    assert sharing.remotes[1].brought == []
    assert sharing.run().ok and sharing.ran == [] and sharing.remotes[1].brought == []


def test_what_a_build_reads_is_brought_and_nothing_else(sharing: Any) -> None:
    first = sharing.run()
    sharing.node("e", "c", add="E")
    outcome = sharing.run()
    assert sharing.ran == ["e"] and sharing.text(outcome, "e") == "ACE"
    assert sharing.remotes[1].brought == [first.outputs("c")["file"]]


def test_an_evicted_blob_is_made_again(sharing: Any) -> None:
    outcome = sharing.run()
    for name in "abc":
        sharing.remotes[1].evicted.add(outcome.outputs(name)["file"])
    sharing.node("e", "c", add="E")
    outcome = sharing.run()
    assert outcome.ok and sharing.text(outcome, "e") == "ACE"
    assert sharing.ran == ["a", "b", "c", "e"] and (outcome.built, outcome.failed) == (4, {})
    assert not [event for event in sharing.events if event.type in ("node-failed", "node-skipped")]


def test_a_record_of_another_key_is_a_miss(sharing: Any) -> None:
    def poison(record: Record) -> Record:
        return dataclasses.replace(record, preimage={**record.preimage, "epoch": 1})

    sharing.remotes[1].change = poison
    outcome = sharing.run()
    assert outcome.ok and outcome.hits == 0 and sharing.text(outcome, "c") == "AC"


def test_results_are_handed_to_whoever_keeps_them(chain: Any) -> None:
    class Keeper(list[str]):
        def put(self, record: Record) -> None:
            self.append(record.name)

    chain.keepers = (Keeper(),)
    chain.file("a.txt", "B1")
    chain.run()
    assert sorted(chain.keepers[0]) == ["a", "b", "c"]


def test_derived_work_is_done_once(world: Any) -> None:
    made: list[str] = []

    def build(task: Any) -> Any:
        def make() -> Any:
            made.append(task.name)
            time.sleep(0.02)
            return {"file": task.put_bytes(b"derived")}

        assert task.derive("test", 2, {"x": 1}, make) == task.derive("test", 2, {"x": 1}, make)
        return task.derive("test", 1, {"x": 1}, make)

    world.kinds["join"].build = build
    for n in range(3):
        world.node(f"n{n}", add=str(n))
    assert world.run(jobs=3).ok and len(made) == 2


def test_events_tell_the_story(chain: Any) -> None:
    chain.file("a.txt", "B1")
    chain.run()
    told = [(event.type, event.subject) for event in chain.events]
    assert told[0][0] == "run-started" and told[-1][0] == "run-finished"
    assert ("node-started", "a") in told and ("node-finished", "c") in told
    assert chain.events[-1].data["built"] == 3


def test_an_included_file_counts_like_the_recipe(world: Any) -> None:
    included = world.root / "included.yaml"
    included.write_text("one")
    whole = world.recipe

    def recipe() -> Any:
        digest = sha256(included.read_bytes()).hexdigest()
        return replace(whole(), files=((str(included), digest),))

    world.recipe = recipe
    world.node("a")
    world.settle()
    assert world.run().ok and "recipe" in world.calls
    assert world.run().ok and world.calls == []
    included.write_text("two")
    assert world.run().ok and "recipe" in world.calls
