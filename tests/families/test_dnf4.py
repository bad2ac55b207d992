"""Rocky's dnf 4: the contract, by the real dnf 4 in a base out of Debian's files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract import *  # noqa: F403
from distros.rpm_distribution import ROCKY
from test_dnf import (
    SmallRpm,
    test_metadata_that_is_none_is_refused,
    test_weak_dependencies_only_when_asked_for,
    test_what_nobody_signed_is_refused,
)

__all__ = [
    "test_metadata_that_is_none_is_refused",
    "test_weak_dependencies_only_when_asked_for",
    "test_what_nobody_signed_is_refused",
]


class SmallRocky(SmallRpm):
    shape = ROCKY


@pytest.fixture
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRocky]:
    yield SmallRocky(tmp_path_factory.mktemp("rocky"))
