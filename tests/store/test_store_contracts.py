"""The store's own storage and cache keep what the contracts promise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from actions_contract import ActionsContract
from cas_contract import CasContract

from kairosbuild.store.actions import ActionCache
from kairosbuild.store.cas import Cas
from kairosbuild.store.store import Store


class TestCas(CasContract):
    @pytest.fixture
    def cas(self, tmp_path: Path) -> Iterator[Cas]:
        made = Cas(tmp_path / "store")
        yield made
        made.leases.gate.close()


class TestCasUnderLease(CasContract):
    @pytest.fixture
    def cas(self, store: Store) -> Iterator[Cas]:
        with store.lease("a test"):
            yield store.cas


class TestActions(ActionsContract):
    @pytest.fixture
    def cas(self, store: Store) -> Cas:
        return store.cas

    @pytest.fixture
    def actions(self, store: Store) -> ActionCache:
        return store.actions
