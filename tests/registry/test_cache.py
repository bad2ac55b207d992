"""The shared cache: what one machine puts there another finds, and nothing doubtful counts."""

import hashlib
import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from fault_server import FaultServer

from kairosbuild.core import canonical
from kairosbuild.core.digest import Blob
from kairosbuild.core.events import Event, Events
from kairosbuild.registry.cache import SharedCache, tag_of
from kairosbuild.registry.known import Known
from kairosbuild.registry.registries import Registries
from kairosbuild.registry.retry import Limits
from kairosbuild.store.cas import Cas
from kairosbuild.store.record import Record

QUICK = Limits(connect=1, read=2, attempts=2, first=1, pause=0.001)
KEY = "ab" * 32
NUMBERS = count()


class Machine:
    """A store of its own, and one repository that it shares."""

    def __init__(self, folder: Path, where: str, **how) -> None:
        self.cas = Cas(folder)
        self.told: list[Event] = []
        target, _ = Registries(limits=QUICK).open(where)
        self.shared = SharedCache(target, self.cas, Events(self.told.append), **how)

    def record(self, *data: bytes, key: str = KEY) -> Record:
        outputs = {f"out{n}": self.cas.put_bytes(one) for n, one in enumerate(data)}
        return Record(key, {"made": "from this"}, outputs, 1.5, self.cas.put_bytes(b"log"), "node")

    def put(self, record: Record) -> Record:
        self.shared.put(record)
        self.shared.finish()
        return record

    @property
    def notes(self) -> list[str]:
        return [event.data["message"] for event in self.told if event.type == "note"]


@pytest.fixture(params=["registry", "layout"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "layout":
        return f"oci:{tmp_path}/shared"
    return f"{request.getfixturevalue('registry')}/cache/n{next(NUMBERS)}"


def test_another_machine_finds_the_record_and_brings_what_it_reads(place: str, tmp_path: Path) -> None:
    one, other = Machine(tmp_path / "1", place), Machine(tmp_path / "2", place)
    kept = one.put(one.record(b"first", b"second"))
    found, held = other.shared.get(KEY)
    assert found == kept and (found.seconds, found.log, found.name) == (1.5, kept.log, "node")
    assert held == {*kept.outputs.values(), kept.log}
    assert not any(map(other.cas.has, held))
    other.shared.bring([kept.outputs["out1"]])
    assert other.cas.read(kept.outputs["out1"]) == b"second" and not other.cas.has(kept.outputs["out0"])
    assert other.shared.get("cd" * 32) is None and other.notes == []
    assert list((tmp_path / "2/tmp").iterdir()) == []


def test_what_a_document_names_is_kept_with_it(place: str, tmp_path: Path) -> None:
    one, other = Machine(tmp_path / "1", place), Machine(tmp_path / "2", place)
    layer = one.cas.put_bytes(b"a layer")
    inner = one.cas.put_bytes(canonical.dumps({"layer": layer.json()}))
    gone = Blob("sha256:" + "0" * 64, 7)
    outer = canonical.dumps({"stack": [inner.json(), gone.json()]})
    one.put(one.record(outer))
    _, held = other.shared.get(KEY)
    assert {layer, inner} < held and gone not in held
    other.shared.bring(held)
    assert all(map(other.cas.verify, held))


def test_a_large_record_is_a_blob_of_its_own(place: str, tmp_path: Path) -> None:
    one, other = Machine(tmp_path / "1", place), Machine(tmp_path / "2", place)
    kept = one.put(replace(one.record(b"x"), preimage={"files": ["f" * 64] * 8000}))
    assert other.shared.get(KEY)[0] == kept


def test_a_registry_that_dies_in_the_middle_has_no_tag(faults: FaultServer, tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"{faults.host}/c")
    faults.fault("PUT .*/uploads", times=99, status=500)
    machine.put(machine.record(b"x"))
    assert faults.tags("c") == set() and len(machine.notes) == 1
    machine.put(machine.record(b"y", key="cd" * 32))
    assert len(machine.notes) == 1, "told once, and then the build goes on without"


def test_a_dead_registry_is_told_once_and_soon(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "127.0.0.1:1/c")
    began = time.monotonic()
    for n in range(50):
        assert machine.shared.get(f"{n:064}") is None
    machine.shared.bring([Blob("sha256:" + "1" * 64, 1)])
    assert len(machine.notes) == 1 and time.monotonic() - began < 5


@pytest.mark.parametrize("how", [{"status": 403}, {"status": 401}, {"reset": True}, {"status": 500}])
def test_failing_look_ups_are_misses_with_one_note(faults: FaultServer, tmp_path: Path, how: dict) -> None:
    machine = Machine(tmp_path, f"{faults.host}/c")
    faults.fault("GET", times=99, **how)
    assert machine.shared.get(KEY) is None and machine.shared.get("cd" * 32) is None
    assert len(machine.notes) == 1


# -- distrust ---------------------------------------------------------------------------------


def test_a_record_under_another_keys_tag_is_a_miss_and_is_written_over(
    faults: FaultServer, tmp_path: Path
) -> None:
    one, other = (Machine(tmp_path / n, f"{faults.host}/c") for n in "12")
    one.put(one.record(b"evil", key="cd" * 32))
    faults.manifests["c", tag_of(KEY)] = faults.manifests["c", tag_of("cd" * 32)]
    assert other.shared.get(KEY) is None and "another key's" in other.notes[0]
    good = other.put(other.record(b"good"))
    assert Machine(tmp_path / "3", f"{faults.host}/c").shared.get(KEY)[0] == good


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["layers"].pop(),
        lambda m: m["config"].update(data="e30="),
        lambda m: m["config"].update(data="!"),
        lambda m: m["config"].pop("digest"),
        lambda m: m.update(layers=7),
        lambda m: m.update(artifactType="x") or m["config"].update(mediaType="y"),
    ],
)
def test_a_poisoned_manifest_is_a_miss(faults: FaultServer, tmp_path: Path, change) -> None:
    one, other = (Machine(tmp_path / n, f"{faults.host}/c") for n in "12")
    one.put(one.record(b"x", b"y"))
    media_type, data = faults.manifests["c", tag_of(KEY)]
    manifest = json.loads(data)
    change(manifest)
    faults.manifests["c", tag_of(KEY)] = media_type, json.dumps(manifest).encode()
    assert other.shared.get(KEY) is None and len(other.notes) == 1


def test_a_poisoned_or_evicted_blob_is_not_taken_and_is_put_there_again(
    faults: FaultServer, tmp_path: Path
) -> None:
    one, other = (Machine(tmp_path / n, f"{faults.host}/c") for n in "12")
    kept = one.put(one.record(b"first", b"second"))
    faults.blobs["c", kept.outputs["out0"].digest] = b"FIRST"
    del faults.blobs["c", kept.outputs["out1"].digest]
    other.shared.bring(kept.outputs.values())
    assert not any(map(other.cas.has, kept.outputs.values()))
    other.put(other.record(b"first", b"second"))
    third = Machine(tmp_path / "3", f"{faults.host}/c")
    third.shared.bring(kept.outputs.values())
    assert all(map(third.cas.verify, kept.outputs.values()))


# -- signatures -------------------------------------------------------------------------------


def seal(name: bytes):
    """A stand-in for a key: `proof.keys` has its own tests, and those of the command line use it here."""
    return lambda data: hashlib.sha256(name + data).digest()


def trusting(*names: bytes):
    return lambda data, signature: any(seal(name)(data) == signature for name in names)


def test_only_signed_records_count_where_that_is_asked(faults: FaultServer, tmp_path: Path) -> None:
    where = f"{faults.host}/c"
    plain = Machine(tmp_path / "1", where)
    plain.put(plain.record(b"unsigned"))
    careful = Machine(tmp_path / "2", where, trust=trusting(b"ours"))
    assert careful.shared.get(KEY) is None and "signed" in careful.notes[0]

    signing = Machine(tmp_path / "3", where, sign=seal(b"ours"), trust=trusting(b"ours"))
    assert signing.shared.get(KEY) is None
    kept = signing.put(signing.record(b"signed"))
    assert Machine(tmp_path / "4", where, trust=trusting(b"theirs", b"ours")).shared.get(KEY)[0] == kept
    assert Machine(tmp_path / "5", where, trust=trusting(b"theirs")).shared.get(KEY) is None
    assert Machine(tmp_path / "6", where).shared.get(KEY)[0] == kept


def test_a_signature_of_another_record_does_not_count(faults: FaultServer, tmp_path: Path) -> None:
    where = f"{faults.host}/c"
    one = Machine(tmp_path / "1", where, sign=seal(b"ours"))
    one.put(one.record(b"x"))
    one.put(one.record(b"y", key="cd" * 32))
    media_type, data = faults.manifests["c", tag_of(KEY)]
    manifest, other = json.loads(data), json.loads(faults.manifests["c", tag_of("cd" * 32)][1])
    manifest["annotations"] = other["annotations"]
    faults.manifests["c", tag_of(KEY)] = media_type, json.dumps(manifest).encode()
    assert Machine(tmp_path / "2", where, trust=trusting(b"ours")).shared.get(KEY) is None


# -- sparing requests -------------------------------------------------------------------------


def test_what_was_put_lately_is_not_asked_for_again(faults: FaultServer, tmp_path: Path) -> None:
    where = f"{faults.host}/c"
    one = Machine(tmp_path, where, known=Known(tmp_path / "shared", where))
    record = one.put(one.record(b"x"))
    asked = len(faults.seen)
    again = Machine(tmp_path, where, known=Known(tmp_path / "shared", where))
    again.put(record)
    assert len(faults.seen) == asked
    fresh = Machine(tmp_path, where, known=Known(tmp_path / "elsewhere", where))
    fresh.put(record)
    assert [(s.method, s.length) for s in faults.seen[asked:]] == [("HEAD", 0)]


def test_a_look_up_is_one_request(faults: FaultServer, tmp_path: Path) -> None:
    one, other = (Machine(tmp_path / n, f"{faults.host}/c") for n in "12")
    one.put(one.record(b"x"))
    asked = len(faults.seen)
    assert other.shared.get(KEY)
    assert len(faults.seen) - asked == 1


def test_others_can_read_it(registry: str, tmp_path: Path) -> None:
    """A result is an artifact like any other: its files have their outputs' names."""
    from kairosbuild.registry.pull import pull

    where = f"{registry}/cache/n{next(NUMBERS)}"
    one = Machine(tmp_path / "1", where)
    one.put(one.record(b"first"))
    pull(one.shared.target, tag_of(KEY), tmp_path / "out", Events())
    assert (tmp_path / "out/out0").read_bytes() == b"first"
    assert (tmp_path / "out/log").read_bytes() == b"log"
