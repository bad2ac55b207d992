from pathlib import Path

import pytest
from small_kinds import KINDS

from kairosbuild.core.errors import KbuildError, Problems
from kairosbuild.recipe.load import parse
from kairosbuild.recipe.workspace import Cache, Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Workspace:
    """A workspace with a file, a folder, and links that lead inside and outside."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text("no")
    root = tmp_path_factory.mktemp("workspace")
    (root / "tree" / "etc").mkdir(parents=True)
    (root / "tree" / "etc" / "motd").write_text("hello")
    (root / "inward").symlink_to("tree")
    (root / "outward").symlink_to(outside)
    (root / "dangling").symlink_to("nowhere")
    return Workspace(root, Cache(root / "cache"))


@pytest.fixture(scope="session")
def read(workspace):
    """Recipe text to a Recipe."""

    def read(text: str | bytes, **given: str):
        data = text.encode() if isinstance(text, str) else text
        return parse(data, "r.yaml", KINDS, workspace=workspace, set_vars=given)

    return read


@pytest.fixture(scope="session")
def problems():
    """The problems that a call raises, as (reason, line, column) in order."""

    def problems(call, *args, **given) -> list[tuple[str, int, int]]:
        with pytest.raises(KbuildError) as caught:
            call(*args, **given)
        error = caught.value
        each = error.problems if isinstance(error, Problems) else [error]
        assert error.exit_code == 2
        return [(p.reason, p.origin.line, p.origin.column) for p in each]

    return problems


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
