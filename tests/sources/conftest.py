"""A local archive and its server, a store to download into."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_archive import Archive, Server

from kairosbuild.sources.download import Downloader, Wanted
from kairosbuild.sources.mirrors import Mirrors
from kairosbuild.store.cas import Cas


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def server(archive: Archive) -> Iterator[Server]:
    server = Server(archive.files)
    yield server
    server.close()


@pytest.fixture
def cas(tmp_path: Path) -> Cas:
    return Cas(tmp_path / "store")


@pytest.fixture
def loader(server: Server, cas: Cas) -> Downloader:
    mirrors = Mirrors({"debian": server.url, "debian-security": server.url})
    return Downloader(cas, mirrors, attempts=3, timeout=5, helper=None)


@pytest.fixture
def fetch(loader: Downloader, cas: Cas) -> Callable[..., Path]:
    def get(uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        return cas.path(loader.get([Wanted(uri, digest or "", size)])[uri].digest)

    return get
