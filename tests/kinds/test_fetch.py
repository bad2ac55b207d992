"""Kind fetch: what it pins, and that building it reaches for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_task import SmallTask

from kairosbuild.core.digest import Blob, of_bytes
from kairosbuild.core.errors import InputError
from kairosbuild.graph.node import Locked, Material
from kairosbuild.kinds.fetch import Fetch, FetchSpec
from kairosbuild.kinds.table import TABLE
from kairosbuild.recipe.load import parse
from kairosbuild.recipe.workspace import Cache, Workspace
from kairosbuild.store.store import Store

URL = "https://example.com/tool.tar.gz"


class OneFile:
    """A locker that has one file, and says what it was asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.asked = path, list[tuple[str, Any]]()

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        self.asked.append((uri, digest))
        return self.path


def test_a_known_size_needs_no_network(tmp_path: Path) -> None:
    locker: Any = OneFile(tmp_path)
    digest = of_bytes(b"x").digest
    locked = Fetch().lock(FetchSpec(url=URL, sha256=digest, size=1), locker)
    assert locked == Locked(materials=(Material(URL, digest, 1),)) and not locker.asked


def test_the_size_is_asked_for_and_the_digest_held_against(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    locker: Any = OneFile(tmp_path / "f")
    digest = of_bytes(b"12345").digest
    locked = Fetch().lock(FetchSpec(url=URL, sha256=digest), locker)
    assert locked.materials[0].size == 5 and locker.asked == [(URL, digest)]


def test_build_yields_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    blob = store.cas.put_bytes(b"content")
    locked = Locked(materials=(Material(URL, blob.digest, blob.size),))
    task = SmallTask(store, FetchSpec(url=URL, sha256=blob.digest), locked=locked)
    assert Fetch().build(task) == {"file": Blob(blob.digest, 7)}


@pytest.mark.parametrize("url", ["ftp://x/y", "../x", "", "https://", "https://a b/c"])
def test_only_addresses_we_can_reach(tmp_path: Path, url: str) -> None:
    text = f'version: 1\nnodes: {{f: {{kind: fetch, url: "{url}", sha256: {"0" * 64}}}}}\n'
    workspace = Workspace(tmp_path, Cache(tmp_path / "c"))
    with pytest.raises(InputError) as caught:
        parse(text.encode(), "r.yaml", TABLE, workspace=workspace)
    assert caught.value.reason == "bad-value"
