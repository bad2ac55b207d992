"""Fetching what changed: how much comes, and that a list or a chunk that lies costs time and no wrong byte."""

import os
import random
from itertools import count
from pathlib import Path

import pytest
from fault_server import FaultServer

from kairosbuild.core import canonical
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.events import Event, Events
from kairosbuild.oci import chunks
from kairosbuild.registry import delta, referrers
from kairosbuild.registry.documents import Item
from kairosbuild.registry.publish import publish
from kairosbuild.registry.pull import pull
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.store.cas import Cas

NUMBERS = count()
SIZE = 12 << 20


def made(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


OLD = made(1)
NEW = OLD[: 5 << 20] + made(2, 300_001) + OLD[5 << 20 :]  # a package grew: everything behind it moves


@pytest.fixture(params=["registry", "faults", "layout"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "layout":
        return f"oci:{tmp_path}/dist"
    found = request.getfixturevalue(request.param)
    return f"{getattr(found, 'host', found)}/delta/n{next(NUMBERS)}"


def opened(where: str):
    return Registries(limits=Limits(connect=2, read=5, attempts=2, pause=0.01)).open(where)[0]


def send(where: str, cas: Cas, data: bytes, *, lists: bool = True) -> None:
    file = {**cas.put_bytes(data).json(), "title": "os.raw", "mediaType": "application/vnd.test.raw"}
    document = {"schema": 1, "artifactType": "application/x", "files": [file], "annotations": {}}
    item = Item("disk", "artifact", cas.put_bytes(canonical.dumps(document)))
    lister = (lambda blob: chunks.dumps(cas.path(blob.digest))) if lists else None
    publish(opened(where), [item], ["1"], cas=cas, transport=None, events=Events(), lister=lister)


def fetched(where: str, into: Path, **how) -> int:
    told: list[Event] = []
    pull(opened(where), "1-disk", into, Events(told.append), **how)
    return sum(event.data["bytes"] for event in told if event.type == "transfer-finished")


def test_who_has_the_last_version_fetches_what_changed(where: str, cas: Cas, tmp_path: Path) -> None:
    send(where, cas, OLD)
    assert fetched(where, tmp_path / "out") == len(OLD)
    send(where, cas, NEW)
    assert 300_000 < fetched(where, tmp_path / "out") < 700_000
    assert (tmp_path / "out/os.raw").read_bytes() == NEW
    (tmp_path / "old").write_bytes(OLD)
    assert fetched(where, tmp_path / "elsewhere", seeds=[tmp_path / "old"]) < 700_000
    assert (tmp_path / "elsewhere/os.raw").read_bytes() == NEW
    assert fetched(where, tmp_path / "out") == 0


def test_without_a_list_or_an_older_one_all_of_it_comes(
    faults: FaultServer, cas: Cas, tmp_path: Path
) -> None:
    where = f"{faults.host}/d"
    send(where, cas, NEW, lists=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/os.raw").write_bytes(OLD)
    assert fetched(where, tmp_path / "out") == len(NEW)
    (tmp_path / "out/os.raw").write_bytes(made(9))
    send(where, cas, NEW + b".")
    assert fetched(where, tmp_path / "out") == len(NEW) + 1
    assert (tmp_path / "out/os.raw").read_bytes() == NEW + b"."


@pytest.mark.parametrize("lie", ["chunk", "no ranges", "short range", "list", "other list", "swapped list"])
def test_what_lies_costs_the_whole_and_no_wrong_byte(
    faults: FaultServer, cas: Cas, tmp_path: Path, lie: str
) -> None:
    where = f"{faults.host}/d"
    send(where, cas, NEW, lists=lie not in ("list", "other list", "swapped list"))
    big = of_bytes(NEW).digest
    listing = chunks.dumps(cas.path(big))
    rows = [listing[8 + 36 * n :][:36] for n in range((len(listing) - 8) // 36)]
    rows[0], rows[1] = rows[1], rows[0]
    wrong = {
        "list": b"KBCHUNK1junk",
        "other list": listing[:-36],
        "swapped list": listing[:8] + b"".join(rows),
    }
    if lie in wrong:
        target, file = opened(where), referrers.File(delta.TYPE, wrong[lie], {delta.OF: big})
        subject = target.get_manifest("1-disk")
        referrers.attach(target, subject, [referrers.Referrer(delta.TYPE, (file,), "chunks")])
    faults.ranges = lie != "no ranges"
    if lie in ("chunk", "short range"):
        change = (lambda data: b"X" + data[1:]) if lie == "chunk" else (lambda data: data[:-1])
        faults.fault(f"GET .*{big}", times=3, change=change)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/os.raw").write_bytes(OLD)
    if lie in ("chunk", "short range"):
        try:
            fetched(where, tmp_path / "out")
        except Exception:
            faults.faults.clear()
            assert (tmp_path / "out/os.raw").read_bytes() == OLD, (
                "the older one stays until the newer is whole"
            )
            fetched(where, tmp_path / "out")
    else:
        assert fetched(where, tmp_path / "out") == len(NEW)
    assert (tmp_path / "out/os.raw").read_bytes() == NEW
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["os.raw"]


# -- the cutting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(3 << 20),
        OLD[: 3 << 20],
        b"a line\n\n" * 99_999,
        os.urandom(chunks.LEAST) + b"\xa5\x5a",
    ],
    ids=["empty", "byte", "zeros", "random", "text", "edge"],
)
def test_chunks_make_up_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    found = list(chunks.chunks_of(tmp_path / "f"))
    assert sum(one.size for one in found) == len(data)
    assert all(chunks.LEAST <= one.size <= chunks.MOST for one in found[:-1])
    assert chunks.loads(chunks.dumps(tmp_path / "f"), len(data)) == found


def test_the_form_is_golden(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789abcdef" * 1024 + b"\xa5\x5arest")
    assert [one.size for one in chunks.chunks_of(tmp_path / "f")] == [16386, 4]
    listing = chunks.dumps(tmp_path / "f")
    assert listing.startswith(b"KBCHUNK1\x00\x00\x40\x02")
    assert of_bytes(listing).digest == GOLDEN


GOLDEN = "sha256:0c434c25d3fd28bbaebb766c1e00d791e2b18dc0bcbcd15c40d87b65c369de3d"


def test_an_insertion_moves_few_cuts(tmp_path: Path) -> None:
    for data in (OLD, b"".join(b"word %d\n%s" % (n, b"\n" if n % 40 == 0 else b"") for n in range(400_000))):
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(data[:1_000_000] + b"inserted" + data[1_000_000:])
        a, b = ({one.sha256 for one in chunks.chunks_of(tmp_path / name)} for name in "ab")
        assert len(b - a) <= 4 + len(b) // 10
