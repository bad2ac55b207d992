"""kill -9 at random moments: what was promised is there, what is there is whole.

`KBUILD_CRASHES` is how many processes are killed; 20 without it.
"""

import os
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from kairosbuild.core.digest import Blob
from kairosbuild.store.store import Store

KILLS = int(os.environ.get("KBUILD_CRASHES", "20"))
VICTIM = Path(__file__).with_name("store_victim.py")


def start(home: Path, seed: str, role: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(VICTIM), str(home), seed, role]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(child: "subprocess.Popen[str]", seconds: float) -> list[list[str]]:
    """Let it do its first thing, some more for a while, then kill it; returns what it said."""
    assert child.stdout
    first = child.stdout.readline()
    time.sleep(seconds)
    child.kill()
    rest = child.stdout.readlines()
    child.stdout.close()
    assert child.wait() == -9
    return [line.split() for line in (first, *rest) if line.endswith("\n")]


def check(home: Path, promised: list[list[str]]) -> None:
    with closing(Store(home)) as store:
        found = store.actions.get_many(key for key, *_ in promised)
        for key, digest, size in promised:
            assert key in found, (store.actions.peek(key), store.cas.has(Blob(digest, int(size))))
            assert found[key].outputs == {"file": Blob(digest, int(size))}
        verified = store.verify()
        assert verified.sound, verified
        assert verified.records >= len(promised)
        assert not store.actions.notes


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Two at work and one collecting garbage at a time, all killed."""
    home, dice, promised = tmp_path / "cache", random.Random(7), []
    for round_number in range(max(1, KILLS // 3)):
        roles = ("work", "work", "collect")
        children = [start(home, f"{round_number}-{number}", role) for number, role in enumerate(roles)]
        for child, role in zip(children, roles, strict=True):
            said = kill_after(child, dice.random() / 8)
            promised += said if role == "work" else []
        check(home, promised)
    with closing(Store(home)) as store:
        assert store.leases.live() == []
        time.sleep(0.02)
        store.gc(grace=0)
        assert list((store.root / "tmp").iterdir()) == []
    check(home, promised)


def test_two_processes_on_the_same_key_work_once(tmp_path: Path) -> None:
    """Single flight as a build uses it: lock, look again, make."""
    code = """if True:
        import sys, pathlib, time
        from kairosbuild.store.record import Record
        from kairosbuild.store.store import Store
        store = Store(pathlib.Path(sys.argv[1]))
        made = 0
        for number in range(30):
            key = f"key-{number}"
            with store.lock(key):
                if store.actions.get(key) is None:
                    time.sleep(0.002)
                    made += 1
                    store.actions.put(Record(key, {}, {"file": store.cas.put_bytes(key.encode())}))
        print(made)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [int(child.communicate()[0]) for child in children]
    assert sum(made) == 30
