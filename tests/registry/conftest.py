"""A real registry on loopback (Debian's docker-registry), and one whose faults are scripted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_registry import no_logins as no_logins
from debian_registry import registry as registry
from fault_server import FaultServer

from kairosbuild.store.cas import Cas


@pytest.fixture
def faults() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def cas(tmp_path: Path) -> Cas:
    return Cas(tmp_path / "cas")
