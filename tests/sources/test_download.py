import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from distros.serving import Served
from local_archive import Archive, Server

from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import HostError, InputError
from kairosbuild.core.events import Event, Events
from kairosbuild.sources import apthelper, download
from kairosbuild.sources.download import Downloader, Wanted
from kairosbuild.sources.mirrors import Mirrors
from kairosbuild.store.cas import Cas

DATA = b"some bytes of a package " * 4000
BLOB = of_bytes(DATA)
URI = "debian:pool/a.deb"
PINNED = Wanted(URI, BLOB.digest, BLOB.size)


@pytest.fixture(params=["urllib", "apt-helper"])
def either(request: pytest.FixtureRequest, loader: Downloader, archive: Archive) -> Downloader:
    archive.files["pool/a.deb"] = DATA
    if request.param == "urllib":
        return loader
    if apthelper.find() is None:
        pytest.skip("no apt here")
    return replace(loader, helper=apthelper.find(), attempts=1)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.01)


def reason_of(loader: Downloader, *wanted: Wanted) -> str:
    with pytest.raises(HostError) as error:
        loader.get(wanted)
    assert "127.0.0.1" in error.value.message or error.value.reason == "cancelled"
    return error.value.reason


def test_a_pinned_file(either: Downloader, cas: Cas) -> None:
    assert either.get([PINNED]) == {URI: BLOB}
    assert cas.read(BLOB) == DATA
    assert not list((cas.root / "tmp").glob("**/apt-*"))


def test_a_file_nobody_knows_yet(either: Downloader) -> None:
    assert either.get([Wanted(URI)]) == {URI: BLOB}


def test_many_at_once(either: Downloader, archive: Archive, server: Server) -> None:
    files = {f"pool/{n}.deb": b"%d" % n * 1000 for n in range(40)}
    archive.files.update(files)
    wanted = [Wanted(f"debian:{path}", of_bytes(data).digest, len(data)) for path, data in files.items()]
    got = either.get([*wanted, *wanted])
    assert got == {f"debian:{path}": of_bytes(data) for path, data in files.items()}
    assert len(server.asked) == 40


FAULTS = {
    "404": "file-gone",
    "410": "file-gone",
    "other": "wrong-digest",
    "longer": "too-large",
    "short": "truncated",
    "cut": "truncated",
    "503": "mirror-down",
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items())
def test_what_goes_wrong_has_one_name(
    either: Downloader, server: Server, cas: Cas, fault: str, reason: str
) -> None:
    server.faults["pool/a.deb"] = [fault]
    assert reason_of(either, PINNED) == reason
    assert not cas.has(BLOB)


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_who_stalls_is_given_up(either: Downloader, archive: Archive, fault: str) -> None:
    slow = Served({"pool/a.deb": DATA})
    slow.faults["pool/a.deb"] = fault
    with contextlib.closing(slow):
        hasty = replace(either, mirrors=Mirrors({"debian": slow.url}), timeout=1)
        began = monotonic()
        assert reason_of(hasty, PINNED) == "mirror-slow"
        assert monotonic() - began < 30


@pytest.mark.parametrize("fault", ["404", "503", "cut", "other", "longer", "drip"])
def test_the_next_mirror_is_asked(either: Downloader, server: Server, fault: str) -> None:
    bad = Served({"pool/a.deb": DATA + bytes(5000) if fault == "longer" else DATA})
    bad.faults["pool/a.deb"] = fault
    with contextlib.closing(bad):
        two = Mirrors({"debian": f"{bad.url} {server.url}"})
        assert replace(either, mirrors=two, timeout=1).get([PINNED]) == {URI: BLOB}
    assert server.asked == ["pool/a.deb"] and bad.asked


@pytest.mark.parametrize("said", ["0", "x", "-1", "1e9"])
def test_a_timeout_that_is_none(said: str) -> None:
    with pytest.raises(InputError) as error:
        download.timeout_of({"KBUILD_FETCH_TIMEOUT": said})
    assert error.value.reason == "fetch-timeout"


def test_a_gone_file_is_told_whatever_is_in_its_name(either: Downloader) -> None:
    assert reason_of(either, Wanted("debian:pool/b_1+deb13~u1.deb", BLOB.digest, BLOB.size)) == "file-gone"


def test_a_gone_file_says_what_to_do(loader: Downloader) -> None:
    with pytest.raises(HostError, match="kbuild lock RECIPE --update NODE"):
        loader.get([PINNED])


def test_nobody_answers(either: Downloader) -> None:
    closed = replace(either, mirrors=Mirrors({"debian": "http://127.0.0.1:9/debian"}))
    assert reason_of(closed, PINNED) == "mirror-down"


@pytest.mark.parametrize(
    ("fault", "asked"), [("503", 3), ("429", 3), ("500", 3), ("cut", 3), ("404", 1), ("403", 1), ("other", 1)]
)
def test_only_what_may_pass_is_tried_again(
    loader: Downloader, archive: Archive, server: Server, fault: str, asked: int
) -> None:
    archive.files["pool/a.deb"] = DATA
    server.faults["pool/a.deb"] = [fault]
    reason_of(loader, PINNED)
    assert len(server.asked) == asked


def test_a_passing_failure_passes(loader: Downloader, archive: Archive, server: Server) -> None:
    archive.files["pool/a.deb"] = DATA
    server.faults["pool/a.deb"] = ["503", "cut", ""]
    assert loader.get([PINNED]) == {URI: BLOB}


def test_never_more_than_the_limit(
    loader: Downloader, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.files["pool/a.deb"] = DATA
    monkeypatch.setattr(download, "LIMIT", 1000)
    assert reason_of(loader, Wanted(URI)) == "too-large"


def test_several_failures_are_counted(loader: Downloader, archive: Archive, cas: Cas) -> None:
    archive.files["pool/a.deb"] = DATA
    with pytest.raises(HostError, match="and 1 more"):
        loader.get([PINNED, Wanted("debian:pool/b"), Wanted("debian:pool/c")])
    assert cas.has(BLOB)


def test_no_password_in_a_message(loader: Downloader, server: Server) -> None:
    with pytest.raises(HostError) as error:
        loader.get([Wanted(server.url.replace("http://", "http://me:secret@") + "/x?token=secret")])
    assert "secret" not in str(error.value)


def test_a_local_file(loader: Downloader, tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(DATA)
    uri = f"file:{tmp_path}/a%20b"
    assert loader.get([Wanted(uri, BLOB.digest, BLOB.size)]) == {uri: BLOB}
    missing = Wanted(f"file:{tmp_path}/127.0.0.1")
    assert reason_of(loader, missing) == "file-gone"


def test_other_schemes_are_refused(loader: Downloader) -> None:
    assert reason_of(loader, Wanted("ftp://127.0.0.1/x")) == "download-failed"


def test_stopping(loader: Downloader, archive: Archive) -> None:
    archive.files["pool/a.deb"] = DATA
    stopped = threading.Event()
    stopped.set()
    assert reason_of(replace(loader, cancelled=stopped), PINNED) == "cancelled"


def test_what_happens_is_told(loader: Downloader, archive: Archive) -> None:
    archive.files["pool/a.deb"] = DATA
    seen: list[Event] = []
    replace(loader, events=Events(seen.append)).get([PINNED])
    assert {event.type for event in seen} == {"transfer-started", "transfer-progress", "transfer-finished"}
    assert all(event.subject == URI for event in seen)
