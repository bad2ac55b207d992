"""The parts the engine is made of: schedule, workers, snapshots, the memory's file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairosbuild.core.digest import of_file
from kairosbuild.execute import memo
from kairosbuild.execute.inputs import Inputs
from kairosbuild.execute.schedule import Needs, Schedule
from kairosbuild.execute.snapshot import identity, take, young
from kairosbuild.execute.workers import Workers


def started(schedule: Schedule) -> list[int]:
    found = []
    while (node := schedule.start()) is not None:
        found.append(node)
    return found


def test_longest_first() -> None:
    schedule = Schedule(2, 100)
    for node, priority in ((1, 1.0), (2, 9.0), (3, 5.0)):
        schedule.add(node, priority, Needs())
    assert started(schedule) == [2, 3]
    schedule.end(2)
    assert started(schedule) == [1]


def test_memory_and_processors_are_shared_out() -> None:
    schedule = Schedule(4, 100)
    schedule.add(1, 3.0, Needs(memory=80))
    schedule.add(2, 2.0, Needs(memory=30))
    schedule.add(3, 1.0, Needs(cpu=2, memory=20))
    schedule.add(4, 0.5, Needs(cpu=2))
    assert started(schedule) == [1, 3], "2 does not fit beside 1, what is behind it may go first"
    schedule.end(1)
    assert started(schedule) == [2]


def test_named_resources_have_one_holder() -> None:
    schedule = Schedule(4, 100)
    for node in range(3):
        schedule.add(node, 1.0, Needs(names=("kvm",)))
    assert started(schedule) == [0]
    schedule.end(0)
    assert started(schedule) == [1]


def test_what_asks_for_too_much_runs_alone() -> None:
    schedule = Schedule(2, 100)
    schedule.add(1, 9.0, Needs(cpu=64, memory=10**12))
    schedule.add(2, 1.0, Needs())
    assert started(schedule) == [1]
    schedule.end(1)
    assert started(schedule) == [2]


def test_hints_become_needs() -> None:
    assert Needs.of({}) == Needs(1, 0, ())
    assert Needs.of({"cpu": 2, "memory": 5, "resources": ["kvm"], "timeout": 1}) == Needs(2, 5, ("kvm",))
    assert Needs.of({"cpu": None, "memory": None}) == Needs()


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60), st.sampled_from(["", "x"]))), st.integers(1, 4)
)
def test_never_more_than_there_is(nodes: list[tuple[int, int, str]], cpu: int) -> None:
    schedule = Schedule(cpu, 100)
    needs = [Needs(c, m, (n,) if n else ()) for c, m, n in nodes]
    for i, need in enumerate(needs):
        schedule.add(i, float(i), need)
    running: list[int] = []
    done: list[int] = []
    while running or not done or len(done) < len(nodes):
        running += started(schedule)
        if not nodes:
            break
        assert running, "something always runs while something is ready"
        if len(running) > 1:
            assert sum(needs[i].cpu for i in running) <= cpu and sum(needs[i].memory for i in running) <= 100
            assert sum("x" in needs[i].names for i in running) <= 1
        done.append(running.pop(0))
        schedule.end(done[-1])
    assert sorted(done) == list(range(len(nodes)))


def test_workers_bring_back_values_and_errors() -> None:
    workers = Workers(2)
    workers.submit(1, lambda: "value")
    workers.submit(2, lambda: 1 / 0)
    ended = (workers.wait(), workers.wait())
    found = {number: (value, type(error)) for number, value, error in ended}
    assert found == {1: ("value", type(None)), 2: (None, ZeroDivisionError)}
    with pytest.raises(Empty):
        workers.wait(0.01)
    workers.close()


def shot(root: Path, source: str) -> Any:
    return take(str(root), source, lambda path: of_file(Path(path)))


def test_a_snapshot_sees_every_change(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("x")
    (tree / "link").symlink_to("file")
    before = shot(tmp_path, "tree")
    assert [(f.logical, f.type) for f in before.files] == [("file", "file"), ("link", "link"), ("sub", "dir")]
    assert before.unchanged() and before.path("file").read_text() == "x"
    for change in (
        lambda: (tree / "new").touch(),
        lambda: (tree / "new").unlink(),
        lambda: (tree / "sub" / "deep").touch(),
        lambda: (tree / "file").chmod(0o755),
        lambda: os.utime(tree / "file", ns=(1, 1)),
        lambda: (tree / "file").rename(tree / "moved"),
    ):
        before = shot(tmp_path, "tree")
        change()
        assert not before.unchanged()


def test_order_is_that_of_the_logical_paths(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a.x", "a/b/c", "é"):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).touch()
    found = [f.logical for f in shot(tmp_path, "t").files]
    assert found == sorted(found) and len(found) == 7


def test_a_link_on_the_way_is_looked_at(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    (tmp_path / "current").symlink_to("one")
    before = shot(tmp_path, "current/f")
    assert before.path("").read_text() == "one"
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("two")
    assert not before.unchanged()


def test_young_files_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    found = identity(str(tmp_path / "f"))
    assert found is not None
    now = time.time_ns()
    assert young(found, now) and not young(found, now + 5_000_000_000)
    whole = (0, 0, 0, 1_000_000_000, 1_000_000_000, 0)
    assert young(whole, 2_500_000_000), "a file system that counts whole seconds"


def test_memory_survives_a_round_trip_and_no_damage(tmp_path: Path) -> None:
    path = str(tmp_path / "memory" / "m")
    assert memo.read(path) is None
    head = {"schema": memo.SCHEMA, "x": "naïve"}
    memo.write(path, [memo.line(head), memo.line({}), memo.line({}), memo.line(["node"])])
    memory = memo.read(path)
    assert memory is not None and memory.head == head and memory.node(0) == ["node"]
    data = Path(path).read_bytes()
    for n in range(0, len(data), 7):
        Path(path).write_bytes(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
        assert memo.read(path) is None
    Path(path).write_bytes(data[:-1])
    assert memo.read(path) is None
    memo.write(path, [memo.line({"schema": 0})])
    assert memo.read(path) is None, "of another schema"


def test_places_differ_by_recipe_and_variables(tmp_path: Path) -> None:
    places = {
        memo.place("s", "a.yaml", []),
        memo.place("s", "b.yaml", []),
        memo.place("s", "a.yaml", [("x", "1")]),
        memo.place("s", "a.yaml", [("x", "2")]),
        memo.place("t", "a.yaml", []),
    }
    assert len(places) == 5
    assert memo.place("s", "a.yaml", [("x", "1"), ("y", "2")]) == memo.place(
        "s", "a.yaml", [("y", "2"), ("x", "1")]
    )


def test_inputs_vouch_for_what_was_read(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_text("1")
    inputs = Inputs([str(there), str(missing)])
    inputs.look()
    time.sleep(0.03)
    assert inputs.identities() == [(str(there), memo.found(str(there))), (str(missing), None)]
    there.write_text("2")
    assert inputs.identities()[0][1] == [], "it changed while it was used"
    missing.write_text("")
    assert inputs.identities()[1][1] == []
    inputs.wrote(str(there))
    time.sleep(0.03)
    assert inputs.identities()[0][1] == memo.found(str(there))


def test_code_stamp_tells_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "execute").mkdir(parents=True)
    (package / "execute" / "memo.py").write_text("x")
    monkeypatch.setattr(memo, "__file__", str(package / "execute" / "memo.py"))
    before = memo.code_stamp()
    assert memo.code_stamp() == before
    (package / "new.py").write_text("")
    assert memo.code_stamp() != before
