"""One workspace and one registry for all machines of a test run."""

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
        yield Fleet(tmp_path_factory.mktemp("fleet"), host)
