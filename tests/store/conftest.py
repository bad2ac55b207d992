"""A store in a fresh folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_records import a_record

from kairosbuild.store.record import Record
from kairosbuild.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def record(store: Store) -> Record:
    """A record in the store, with one output there."""
    kept = a_record("one", {"file": store.cas.put_bytes(b"an output")})
    store.actions.put(kept)
    return kept
