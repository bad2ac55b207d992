"""Rocky's dnf 4: what of the contract depends on which dnf it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract import (
    test_a_conflict_is_told,
    test_a_package_can_be_removed_again,
    test_a_package_that_does_not_exist_is_told_with_the_recipes_line,
    test_exact_files_then_offline_then_equal_twice,
    work,
)
from distros.rpm_distribution import ROCKY
from test_dnf import SmallRpm

__all__ = [
    "test_a_conflict_is_told",
    "test_a_package_can_be_removed_again",
    "test_a_package_that_does_not_exist_is_told_with_the_recipes_line",
    "test_exact_files_then_offline_then_equal_twice",
    "work",
]


class SmallRocky(SmallRpm):
    shape = ROCKY


@pytest.fixture
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRocky]:
    yield SmallRocky(tmp_path_factory.mktemp("rocky"))
