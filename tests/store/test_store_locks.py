"""Single flight across threads and processes."""

import subprocess
import sys
import threading
import time
from pathlib import Path

from kairosbuild.store.locks import Locks

HOLDER = """if True:
    import sys, pathlib, time
    from kairosbuild.store.locks import Locks
    with Locks(pathlib.Path(sys.argv[1])).hold("key"):
        print("held", flush=True)
        time.sleep(60)
"""

COUNTER = """if True:
    import sys, pathlib
    from kairosbuild.store.locks import Locks
    locks, file = Locks(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])
    for _ in range(200):
        with locks.hold("counter"):
            file.write_text(str(int(file.read_text()) + 1))
"""


def test_threads_take_turns(tmp_path: Path) -> None:
    locks, inside, most = Locks(tmp_path), [], []

    def work() -> None:
        for _ in range(50):
            with locks.hold("key"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) == 200
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


def test_processes_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "count"
    file.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(tmp_path / "locks"), str(file)]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert file.read_text() == "600"
    assert [path.stat().st_size for path in (tmp_path / "locks").iterdir()] == [0]


def test_other_keys_do_not_wait(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    with locks.hold("one"), locks.attempt("two") as got, locks.attempt("one") as again:
        assert got
        assert not again
    with locks.attempt("one") as got:
        assert got


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    locks = Locks(tmp_path)
    with locks.attempt("key") as got:
        assert not got
    child.kill()
    child.wait()
    child.stdout.close()
    started = time.monotonic()
    with locks.hold("key"):
        assert time.monotonic() - started < 30
