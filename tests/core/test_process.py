"""Children: how they end, and that nothing of them stays."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from kairosbuild.core import process
from kairosbuild.core.errors import HostError


def sh(script: str, log: Path, **more: object) -> process.Finished:
    return process.run(("/bin/sh", "-c", script), log=log, **more)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # somebody else's to reap: it is an orphan of ours
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_how_it_ended(tmp_path: Path, script: str, code: int) -> None:
    done = sh(script, tmp_path / "log")
    assert (done.code, done.ended, done.ok) == (code, "exit", code == 0)


def test_output_goes_to_the_log_in_order(tmp_path: Path) -> None:
    sh("echo one; echo two >&2", tmp_path / "log")
    sh("echo three", tmp_path / "log")
    assert process.tail(tmp_path / "log") == b"one\ntwo\nthree\n"


def test_tail_is_bounded_and_starts_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    assert process.tail(tmp_path / "log", 20) == b"line 998\nline 999\n"
    assert process.tail(tmp_path / "none") == b""
    assert process.last_lines(b"a\nb\nc\n\xff", 2) == "c\n\ufffd"


def test_environment_folder_and_umask(tmp_path: Path) -> None:
    sh("env; pwd; umask", tmp_path / "log", env={"A": "b"}, cwd=tmp_path, umask=0o027)
    said = (tmp_path / "log").read_text().split()
    assert {"A=b", str(tmp_path), "0027"} <= set(said) and not any(word.startswith("HOME=") for word in said)


@pytest.mark.parametrize("stubborn", [False, True], ids=["polite", "stubborn"])
@pytest.mark.parametrize("how", ["timeout", "cancelled"])
def test_stopping_ends_the_group(
    tmp_path: Path, how: str, stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.stop, "__kwdefaults__", {"grace": 0.3})
    trap = "trap '' TERM;" if stubborn else ""
    cancel = threading.Event()
    if how == "cancelled":
        threading.Timer(0.3, cancel.set).start()
    done = sh(
        f"{trap} sleep 1000 & echo $!; echo $$; wait; sleep 1000",
        tmp_path / "log",
        cancel=cancel,
        timeout=0.3 if how == "timeout" else None,
    )
    assert done.ended == how and not done.ok
    assert all(gone(int(pid)) for pid in (tmp_path / "log").read_text().split())


def test_what_is_left_running_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    assert sh("sleep 1000 & echo $!", tmp_path / "log").ok
    assert time.monotonic() - began < 100
    assert gone(int((tmp_path / "log").read_text()))


def test_no_zombie_stays(tmp_path: Path) -> None:
    for _ in range(5):
        sh("true", tmp_path / "log")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]
    assert "Z" not in states


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError) as caught:
        process.run(("/no/such/program",), log=tmp_path / "log")
    assert caught.value.reason == "program-missing" and "/no/such/program" in caught.value.message


def test_much_output_takes_no_memory_here(tmp_path: Path) -> None:
    words = (sys.executable, "-c", "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))")
    assert process.run(words, log=tmp_path / "log").ok
    assert (tmp_path / "log").stat().st_size == 64 << 20
    assert len(process.tail(tmp_path / "log")) <= process.TAIL
