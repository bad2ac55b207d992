"""What every action cache promises. An implementation runs it by subclassing `ActionsContract`."""

from typing import Any

import pytest
from store_records import a_record

from kairosbuild.core.digest import of_bytes
from kairosbuild.store.record import Record


class ActionsContract:
    """`actions` is an empty cache over the storage `cas`; a subclass gives both as fixtures."""

    @pytest.fixture
    def cas(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def actions(self, cas: Any) -> Any:
        raise NotImplementedError

    def test_what_is_put_is_got(self, cas: Any, actions: Any) -> None:
        log = cas.put_bytes(b"it went well")
        preimage = {"list": [1, {"deep": None}], "text": "ü\0", "yes": True}
        kept = Record("sha256:" + "a" * 64, preimage, {"layer": cas.put_bytes(b"l")}, 1.5, log, "os")
        actions.put(kept)
        found = actions.get(kept.key)
        assert found == kept
        assert (found.seconds, found.log, found.name) == (1.5, log, "os")

    def test_unknown_key_is_a_miss(self, actions: Any) -> None:
        assert actions.get("sha256:" + "0" * 64) is None
        assert actions.get_many([]) == {}

    def test_missing_output_is_a_miss(self, cas: Any, actions: Any) -> None:
        lacking = a_record("lacking", {"there": cas.put_bytes(b"1"), "gone": of_bytes(b"never put")})
        actions.put(lacking)
        assert actions.get(lacking.key) is None
        cas.put_bytes(b"never put")
        assert actions.get(lacking.key) == lacking

    def test_later_put_wins(self, cas: Any, actions: Any) -> None:
        first, second = (a_record("same", {"file": cas.put_bytes(data)}) for data in (b"1", b"2"))
        actions.put(first)
        actions.put(second)
        assert actions.get(first.key) == second

    def test_get_many(self, cas: Any, actions: Any) -> None:
        all_of_them = [a_record(f"n{n}", {"file": cas.put_bytes(bytes([n % 7]))}) for n in range(1200)]
        with actions.batch():
            for one in all_of_them:
                actions.put(one)
        keys = [one.key for one in all_of_them]
        assert actions.get_many([*keys, "sha256:" + "f" * 64]) == {one.key: one for one in all_of_them}

    def test_batch_is_all_or_nothing(self, cas: Any, actions: Any) -> None:
        kept = a_record("in a batch", {"file": cas.put_bytes(b"1")})
        with pytest.raises(RuntimeError), actions.batch():
            actions.put(kept)
            raise RuntimeError
        assert actions.get(kept.key) is None

    def test_last_key_of_a_name(self, cas: Any, actions: Any) -> None:
        first, second = (a_record(seed, {"file": cas.put_bytes(b"1")}) for seed in ("one", "two"))
        actions.put(first, last="recipe/node")
        actions.put(second, last="recipe/node")
        assert actions.last("recipe/node") == second.key
        actions.set_last({"recipe/node": first.key, "recipe/other": second.key})
        assert actions.lasts(["recipe/node", "recipe/other", "recipe/none"]) == {
            "recipe/node": first.key,
            "recipe/other": second.key,
        }

    def test_a_large_record_is_kept(self, cas: Any, actions: Any) -> None:
        large = Record("sha256:" + "b" * 64, {"files": ["x" * 64] * 50_000}, {"file": cas.put_bytes(b"1")})
        actions.put(large)
        assert actions.get(large.key) == large
