"""The workspace of the command line's tests."""

from pathlib import Path

import pytest
from cli_workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)
