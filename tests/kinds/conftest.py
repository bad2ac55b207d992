"""A store, a small Debian archive, and lockers over them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from local_archive import Archive, Server
from small_locker import Made, SmallLocker

from kairosbuild.sources import openpgp
from kairosbuild.sources.mirrors import Mirrors
from kairosbuild.store.store import Store


@pytest.fixture
def debian_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "debian-store")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An archive whose key is the one that is trusted."""
    archive = Archive()
    keyring = archive.key.keyring(tmp_path / "archive.pgp")
    monkeypatch.setattr("kairosbuild.sources.debian.open_archive.__kwdefaults__", {"keyring": keyring})
    assert keyring != openpgp.DEBIAN
    return archive


@pytest.fixture
def locker(debian_store: Store, archive: Archive) -> Iterator[Made]:
    """Makes lockers over the small archive."""
    server = Server(archive.files)
    mirrors = Mirrors({"debian": server.url, "debian-security": server.url})
    yield partial(SmallLocker, debian_store, mirrors)
    server.close()
