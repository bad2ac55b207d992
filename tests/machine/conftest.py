"""One workspace and one registry for all machines of a test run."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet

sys.path.append(str(Path(__file__).parents[1] / "registry"))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    from debian_registry import started

    with started(tmp_path_factory.mktemp("registry")) as (host, _):
        common = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            common = common.parent
        found = Fleet(tmp_path_factory.mktemp("fleet"), host, common)
        yield found
        found.close()
