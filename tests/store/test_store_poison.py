"""A database that somebody or something wrote into: every doubtful row is a miss and nothing is executed."""

import os
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_records import a_record

from kairosbuild.store import record as records
from kairosbuild.store.disk import InlineDisk
from kairosbuild.store.record import Record
from kairosbuild.store.store import Store

MODES = {"raw": 1, "binary": 2, "text": 3, "pickle": 4}


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def edit(store: Store, statement: str, *arguments: object) -> None:
    with closing(sqlite3.connect(store.root / "actions" / "cache.db")) as database, database:
        assert database.execute(statement, arguments).rowcount == 1


def everything(store: Store, key: str) -> Record | None:
    """Every way in which a row is looked at."""
    found = store.actions.get(key)
    assert store.actions.get_many([key]) == ({key: found} if found else {})
    store.actions.peek(key)
    list(store.actions.all())
    store.stat()
    store.gc(grace=0)
    store.verify()
    return found


def test_a_pickled_row_is_a_miss_and_never_unpickled(store: Store, record: Record, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    edit(
        store,
        "UPDATE Cache SET mode = ?, value = ? WHERE key = ?",
        MODES["pickle"],
        trap,
        f"record:{record.key}",
    )
    assert everything(store, record.key) is None
    assert not (tmp_path / "sprung").exists()
    store.actions.put(record)
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_value_file_is_not_read_and_not_removed(
    store: Store, record: Record, tmp_path: Path
) -> None:
    bait = tmp_path / "bait"
    bait.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    name = os.path.relpath(bait, store.root / "actions")
    edit(
        store,
        "UPDATE Cache SET mode = ?, filename = ?, value = NULL WHERE key = ?",
        MODES["pickle"],
        name,
        f"record:{record.key}",
    )
    assert store.actions.get(record.key) is None
    store.actions.put(record)  # stock diskcache deletes the file that the replaced row names
    assert bait.exists()
    assert not (tmp_path / "sprung").exists()
    assert store.actions.get(record.key) == record


def test_a_pickled_key_is_never_unpickled(store: Store, record: Record, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    edit(store, "UPDATE Cache SET raw = 0, key = ? WHERE key = ?", trap, f"record:{record.key}")
    assert everything(store, record.key) is None
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("mode", sorted(MODES.values()))
@pytest.mark.parametrize("value", [b"", b"not json", b"{}", "text", 1, 1.5, None])
def test_a_row_of_any_shape_is_a_miss(store: Store, record: Record, mode: int, value: object) -> None:
    edit(store, "UPDATE Cache SET mode = ?, value = ? WHERE key = ?", mode, value, f"record:{record.key}")
    assert everything(store, record.key) is None


@pytest.mark.parametrize("column", ["value", "key"])
def test_a_row_of_text_that_is_none_hides_no_other(store: Store, record: Record, column: str) -> None:
    other = a_record("other", {"file": store.cas.put_bytes(b"another output")})
    store.actions.put(other)
    broken = f"UPDATE Cache SET {column} = CAST(x'fffe' AS TEXT) WHERE key = ?"
    edit(store, broken, f"record:{record.key}")
    assert store.stat().records == 1
    assert {key for key, _, data in store.actions.all() if data} == {other.key}
    assert store.actions.get(record.key) is None and store.actions.get(other.key) == other
    store.gc(grace=0)
    assert store.actions.get(other.key) == other


def test_diskcache_itself_refuses_to_unpickle(tmp_path: Path) -> None:
    import diskcache

    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    with closing(diskcache.Cache(str(tmp_path / "cache"), disk=InlineDisk)) as cache:
        cache.set("key", b"value")
        with closing(sqlite3.connect(tmp_path / "cache" / "cache.db")) as database, database:
            database.execute("UPDATE Cache SET mode = 4, value = ?", (trap,))
        with pytest.raises(KeyError):
            cache.get("key")
        for value in ({"a": 1}, "text", 1):
            with pytest.raises(TypeError):
                cache.set("key", value)
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_a_record_is_a_miss(store: Store, data: st.DataObject) -> None:
    kept = a_record("flip", {"file": store.cas.put_bytes(b"x")})
    whole = bytearray(records.dumps(kept))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert records.loads(kept.key, bytes(whole)) is None


def test_a_record_under_another_key_is_a_miss(store: Store, record: Record) -> None:
    other = a_record("other", {"file": store.cas.put_bytes(b"other")})
    edit(store, "UPDATE Cache SET value = ? WHERE key = ?", records.dumps(other), f"record:{record.key}")
    assert store.actions.get(record.key) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"schema":2,"key":"KEY","name":"","preimage":{},"outputs":{},"microseconds":0,"log":null}',
        b'{"schema":1,"key":"KEY","name":"","preimage":{},"outputs":[],"microseconds":0,"log":null}',
        b'{"schema":1,"key":"KEY","name":"","preimage":{},"outputs":{"a":{"digest":"sha256:../../x","size":1}},'
        b'"microseconds":0,"log":null}',
        b'{"schema":1,"key":"KEY"}',
        b"[]",
    ],
)
def test_a_record_of_another_schema_is_a_miss(body: bytes) -> None:
    assert records.loads("KEY", records.sealed(body)) is None


@pytest.mark.parametrize("setting", [("disk_surprise", 1), ("sqlite_journal_mode", "x; y"), ("_disk", 7)])
def test_strange_settings_are_no_error(store: Store, record: Record, setting: tuple[str, object]) -> None:
    edit(store, "INSERT OR REPLACE INTO Settings VALUES (?, ?)", *setting)
    store.close()
    with closing(Store(store.home)) as again:
        again.actions.put(record)
        assert again.actions.get(record.key) == record


def spoil_all(data: bytes) -> bytes:
    return b"this is no database" * 1000


def spoil_middle(data: bytes) -> bytes:
    return data[:8192] + os.urandom(len(data) - 8192)


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("spoil", [spoil_all, spoil_middle, truncate, empty])
def test_a_spoilt_database_is_set_aside_and_started_anew(store: Store, spoil) -> None:
    kept = [a_record(str(n), {"file": store.cas.put_bytes(b"x")}) for n in range(300)]
    with store.actions.batch():
        for one in kept:
            store.actions.put(one)
    store.close()
    database = store.root / "actions" / "cache.db"
    database.write_bytes(spoil(database.read_bytes()))
    with closing(Store(store.home)) as again:
        found = again.actions.get_many(one.key for one in kept)
        assert all(found[one.key] == one for one in kept if one.key in found)
        again.actions.put(kept[0])
        assert again.actions.get(kept[0].key) == kept[0]
        if spoil is not empty:
            assert again.actions.notes
            assert list((again.root / "damaged").glob("actions-*/cache.db"))
