"""Garbage collection and verification: what must stay stays, what need not goes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cas_contract import damage
from store_records import a_record

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store

TICK = 0.02  # seconds: coarser than a file system's clock
DAY = 86_400.0


def wait() -> None:
    time.sleep(TICK)


def put(store: Store, seed: str, size: int = 10, **more: Blob) -> Record:
    """A record whose output has its seed for content."""
    kept = a_record(seed, {"file": store.cas.put_bytes(seed.encode().ljust(size)), **more})
    store.actions.put(kept)
    return kept


def hit(store: Store, *records: Record) -> list[bool]:
    return [store.actions.get(one.key) is not None for one in records]


def test_what_no_record_names_goes_after_the_grace_period(store: Store, record: Record) -> None:
    orphan = store.cas.put_bytes(b"orphan")
    wait()
    assert store.gc(grace=60).blobs == 0
    assert store.cas.has(orphan)
    swept = store.gc(grace=0)
    assert (swept.blobs, swept.records) == (1, 0)
    assert not store.cas.has(orphan)
    assert store.actions.get(record.key) == record


def test_a_blob_found_again_is_young_again(store: Store) -> None:
    orphan = store.cas.put_bytes(b"orphan")
    wait()
    before = time.time()
    store.cas.put_bytes(b"orphan")
    assert store.gc(grace=time.time() - before + TICK).blobs == 0
    assert store.cas.has(orphan)


def test_the_most_recently_used_records_fit_the_budget(store: Store) -> None:
    old, new = put(store, "old", 100_000), put(store, "new", 100_000)
    wait()
    assert store.gc(grace=0, keep_bytes=150_000).records == 1
    assert hit(store, old, new) == [False, True]


def test_records_that_nobody_used_for_long_go(store: Store) -> None:
    kept = put(store, "kept")
    wait()
    assert store.gc(grace=0, keep_age=DAY).records == 0
    assert store.gc(grace=DAY, keep_age=0).records == 0
    assert store.gc(grace=0, keep_age=0).records == 1
    assert hit(store, kept) == [False]
    assert store.stat().blobs == 0


def test_a_hit_counts_as_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = put(store, "used"), put(store, "unused")
    wait()
    then = time.time() + 2 * DAY
    monkeypatch.setattr(time, "time", lambda: then)
    assert hit(store, used) == [True]
    assert store.gc(grace=0, keep_age=DAY).records == 1
    assert hit(store, used, unused) == [True, False]


def test_documents_keep_what_they_name(store: Store) -> None:
    layer = store.cas.put_bytes(b"layer" * 1000)
    stack = store.cas.put_bytes(json.dumps([{"layer": layer.json()}]).encode())
    image = store.cas.put_bytes(json.dumps({"stack": stack.json()}).encode())
    material = store.cas.put_bytes(b"a package")
    kept = Record("sha256:" + "c" * 64, {"locked": material.digest}, {"image": image})
    store.actions.put(kept)
    wait()
    assert store.gc(grace=0).blobs == 0
    assert not store.cas.missing([layer, stack, image, material])


def test_pins_hold(store: Store) -> None:
    layer = store.cas.put_bytes(b"layer")
    stack = store.cas.put_bytes(json.dumps([layer.json()]).encode())
    store.pin("a release", [stack])
    wait()
    assert store.gc(grace=0).blobs == 0
    store.unpin("a release")
    assert store.gc(grace=0).blobs == 2


def test_a_dry_run_changes_nothing(store: Store) -> None:
    put(store, "record")
    store.cas.put_bytes(b"orphan")
    wait()
    generation, before = store.generation(), sorted(store.root.rglob("blobs/**"))
    swept = store.gc(grace=0, keep_age=0, dry_run=True)
    assert (swept.records, swept.blobs) == (1, 2)
    assert swept.freed > 0
    assert sorted(store.root.rglob("blobs/**")) == before
    assert store.generation() == generation


def test_the_generation_changes_with_what_is_here(store: Store) -> None:
    seen = store.generation()
    store.gc()
    assert store.generation() != seen


def test_leftovers_of_killed_processes_go(store: Store) -> None:
    folder = store.cas.tmp()
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_bytes(b"x")
    os.utime(folder, (0, 0))  # an extracted root may claim any age
    (store.root / "tmp" / "file").write_bytes(b"x" * 5000)
    (store.root / "leases" / "1-abandoned").write_text("0 a dead build\n")
    (store.root / "blobs" / "sha256" / "aa").mkdir(exist_ok=True)
    (store.root / "blobs" / "sha256" / "aa" / "stray").write_bytes(b"x")
    store.actions.put(a_record("any", {}))
    (store.root / "actions" / "ab").mkdir()
    (store.root / "actions" / "ab" / "orphan.val").write_bytes(b"x")
    wait()
    assert store.gc(grace=60).leftovers == 0
    assert store.gc(grace=0).leftovers == 4
    for name in ("tmp", "leases", "blobs/sha256/aa"):
        assert list((store.root / name).iterdir()) == []
    assert [
        path.name for path in (store.root / "actions").iterdir() if not path.name.startswith("cache.db")
    ] == []


def test_names_of_forgotten_records_go(store: Store) -> None:
    kept = a_record("kept", {})
    store.actions.put(kept, last="recipe/kept")
    store.actions.set_last({"recipe/gone": "sha256:" + "0" * 64})
    wait()
    store.gc(grace=0)
    assert store.actions.lasts(["recipe/kept", "recipe/gone"]) == {"recipe/kept": kept.key}


def test_trees_that_nobody_asked_for_go(store: Store) -> None:
    store.trees.get("t", lambda root: None)
    wait()
    assert store.gc(grace=60).trees == 0
    with store.lease("a build"):
        store.trees.get("t", lambda root: None)
        assert store.gc(grace=0).trees == 0
    assert store.gc(grace=0).trees == 1
    assert list(store.trees.root.iterdir()) == []


BUILD = """if True:
    import sys, pathlib
    from kairosbuild.core.digest import Blob
    from kairosbuild.store.store import Store
    store = Store(pathlib.Path(sys.argv[1]))
    with store.lease("a build"):
        assert store.actions.get(sys.argv[2])
        assert store.cas.has(Blob(sys.argv[3], int(sys.argv[4])))
        fresh = store.cas.put_bytes(b"made by the build")
        folder = store.cas.tmp()
        print(fresh.digest, fresh.size, folder, flush=True)
        sys.stdin.readline()
        print("ok" if store.actions.get(sys.argv[2]) and store.cas.has(fresh) and folder.is_dir() else "lost")
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_running_build_loses_nothing(store: Store, killed: bool) -> None:
    needed, other = put(store, "needed"), put(store, "other")
    material, orphan = store.cas.put_bytes(b"material"), store.cas.put_bytes(b"orphan")
    command = [sys.executable, "-c", BUILD, str(store.home), needed.key, material.digest, str(material.size)]
    wait()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        digest, size, folder = child.stdout.readline().split()
        fresh = Blob(digest, int(size))
        wait()
        swept = store.gc(grace=0, keep_age=0)
        assert hit(store, other) == [False]
        assert not store.cas.has(orphan)
        assert not store.cas.missing([*needed.outputs.values(), material, fresh])
        assert Path(folder).is_dir()
        assert hit(store, needed) == [True]
        assert store.stat().leases == 1
        if killed:
            child.kill()
        else:
            assert child.communicate("go on\n")[0] == "ok\n"
    assert swept.records == 1
    store.gc(grace=0, keep_age=0)
    assert store.stat().blobs == 0
    assert not Path(folder).exists()


def test_one_collection_at_a_time(store: Store) -> None:
    with store.lock("gc"), pytest.raises(HostError) as caught:
        store.gc()
    assert caught.value.reason == "gc-running"


# -- verify ------------------------------------------------------------------------------------


def test_a_sound_store_verifies(store: Store, record: Record) -> None:
    heard: list[int] = []
    found = store.verify(heard.append)
    assert found.sound
    assert (found.blobs, found.records, sum(heard)) == (1, 1, found.bytes)


@pytest.mark.parametrize("data", [b"an outpuT", b"an outpu", b"", b"an output and more"])
def test_damage_becomes_a_miss(store: Store, record: Record, data: bytes) -> None:
    blob = record.outputs["file"]
    damage(store.cas, blob, data, unseen=True)
    generation = store.generation()
    found = store.verify()
    assert found.damaged == (blob.digest,)
    assert (found.records, found.forgotten) == (0, 1)
    assert store.generation() != generation
    assert store.actions.get(record.key) is None
    assert (store.root / "damaged" / blob.hex).exists()
    assert store.verify().sound
    store.cas.put_bytes(b"an output")
    store.actions.put(record)
    assert store.actions.get(record.key) == record
    assert store.verify().sound


def test_verification_drops_trees_because_nothing_vouches_for_them(store: Store) -> None:
    tree = store.trees.get("t", lambda root: (root / "file").write_text("x") and None)
    assert store.verify().trees == 1
    assert not tree.exists()


def test_verification_repairs_mode_and_seal(store: Store, record: Record) -> None:
    path = store.cas.path(record.outputs["file"].digest)
    path.chmod(0o644)
    os.utime(path)
    assert store.verify().sound
    assert path.stat().st_mode & 0o777 == 0o444
