"""What every local executor promises of the sandbox a command runs in."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostroot import file_layer, host_root, put_layer
from peers import outside_of_a_chroot, peer

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.execute.executor import ActionError
from kairosbuild.execute.sandbox import BubblewrapExecutor, LocalExecutor, ZygoteExecutor
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.oci.entry import Entry
from kairosbuild.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def root(store: Store) -> Blob:
    return host_root(store).layer


@pytest.fixture(scope="module", params=["zygote", "bubblewrap"])
def executor(request: pytest.FixtureRequest, store: Store) -> Iterator[Any]:
    if request.param == "zygote":
        made: Any = ZygoteExecutor(store, epoch=1234)
    else:
        outside_of_a_chroot("bubblewrap")
        made = BubblewrapExecutor(store, epoch=1234, bwrap=(peer("bwrap", "bubblewrap"),))
    yield made
    made.close()


Run = Callable[..., ActionResult]


@pytest.fixture
def run(executor: Any, store: Store, root: Blob, tmp_path: Path) -> Run:
    def once(script: str, *outputs: str, cancel: threading.Event | None = None, **more: Any) -> ActionResult:
        more.setdefault("root", (root,))
        more.setdefault("command", ("/bin/sh", "-euc", script))
        action = Action(outputs=outputs, **more)
        result: ActionResult = executor.execute(
            action, name="node", scratch=tmp_path, cancel=cancel or threading.Event()
        )
        return result

    return once


def marker() -> str:
    """Seconds to sleep that no other process sleeps."""
    return f"1{random.randrange(10**8, 10**9)}"


def running(word: str) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def gone(word: str) -> bool:
    deadline = time.monotonic() + 10
    while running(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(word)


# -- what a command is given and what it leaves -----------------------------------------------


def test_inputs_outputs_and_log(run: Run, store: Store) -> None:
    two = {"a": store.cas.put_bytes(b"A\n"), "deep/er/b": store.cas.put_bytes(b"B\n")}
    result = run(
        "echo said; echo too >&2; cat a deep/er/b > /out/x; mkdir /out/d; cat a > /out/d/y",
        "x",
        "d/y",
        inputs=two,
    )
    assert store.cas.read(result.outputs["x"]) == b"A\nB\n"
    assert result.outputs["d/y"] == two["a"]
    assert result.log == b"said\ntoo\n" and result.layer is None


def test_environment_is_ours(run: Run) -> None:
    said = run(
        "env; uname -n; umask; id -u; id -g; readlink /proc/self/cwd", env={"MINE": "a b=c"}
    ).log.decode()
    assert sorted(said.splitlines()) == sorted(
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/tmp",
            "TZ=UTC",
            "LC_ALL=C.UTF-8",
            "SOURCE_DATE_EPOCH=1234",
            "MINE=a b=c",
            "PWD=/in",
            "kbuild",
            "0022",
            "0",
            "0",
            "/in",
        ]
    )


def test_long_words_arrive(run: Run) -> None:
    long = "x" * 100_000
    assert run('printf %s "$LONG"', env={"LONG": long}).log.decode() == long


def test_the_umask_of_the_caller_does_not_matter(run: Run, store: Store) -> None:
    before = os.umask(0o077)
    try:
        said = run(
            "umask; cat a; touch /out/x; stat -c %a /out/x /out /in /tmp",
            inputs={"a": store.cas.put_bytes(b"A\n")},
        )
    finally:
        os.umask(before)
    assert said.log.split() == [b"0022", b"A", b"644", b"755", b"755", b"1777"]


def test_exec_bit_where_it_is_asked_for(run: Run, store: Store) -> None:
    tool = store.cas.put_bytes(b"#!/bin/sh\necho ran\n")
    staged = {"inputs": {"tool": tool, "other": tool}, "executable": ("tool",)}
    assert run("/in/tool; test ! -x /in/other || id -u >&2", **staged).log.startswith(b"ran")
    assert store.cas.path(tool.digest).stat().st_mode & 0o777 == 0o444


def test_working_folder(run: Run) -> None:
    assert run("cat /proc/self/cwd/x 2>/dev/null || readlink /proc/self/cwd", cwd="/tmp").log == b"/tmp\n"


# -- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 3", "status 3"), ("kill -9 $$", "status 137"), ("/none", "127")]
)
def test_failure_names_status_and_shows_the_log(run: Run, script: str, status: str) -> None:
    with pytest.raises(ActionError) as caught:
        run(f"echo last words; {script}")
    assert caught.value.reason == "action-failed"
    assert status in caught.value.message and "last words" in caught.value.message
    assert caught.value.log.startswith(b"last words\n")


def test_a_full_disk_is_guessed_at(run: Run) -> None:
    with pytest.raises(ActionError) as caught:
        run("echo 'tar: x: Cannot write: No space left on device'; exit 2")
    assert "cache gc" in caught.value.hint


def test_missing_program(run: Run) -> None:
    with pytest.raises(ActionError, match="no/such") as caught:
        run("", command=("/no/such",))
    assert caught.value.reason == "action-failed"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("true", "output-missing"),
        ("ln -s /etc/passwd /out/x", "output-type"),
        ("mkfifo /out/x", "output-type"),
        ("mkdir /out/x", "output-type"),
    ],
)
def test_bad_outputs(run: Run, script: str, reason: str) -> None:
    with pytest.raises(ActionError) as caught:
        run(script, "x")
    assert caught.value.reason == reason


def test_an_output_behind_a_link_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    with pytest.raises(ActionError) as caught:
        run(f"ln -s {tmp_path} /out/d", "d/secret")
    assert caught.value.reason == "output-type"
    assert (tmp_path / "secret").read_text() == "host"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", ""])
def test_paths_out_of_the_folder_are_refused(run: Run, store: Store, path: str) -> None:
    with pytest.raises(InputError) as caught:
        run("true", inputs={path: store.cas.put_bytes(b"A")})
    assert caught.value.reason == "action-path"


def test_after_a_failure_the_next_one_starts_clean(run: Run, store: Store) -> None:
    with pytest.raises(ActionError):
        run("echo noise; touch /out/left /tmp/left; exit 1", inputs={"a": store.cas.put_bytes(b"A")})
    assert run("ls /in /out /tmp").log.split() == [b"/in:", b"/out:", b"/tmp:"]


# -- isolation --------------------------------------------------------------------------------


def test_no_network_but_loopback(run: Run) -> None:
    rows = run("cat /proc/net/dev").log.decode().splitlines()[2:]
    assert [row.split(":")[0].strip() for row in rows] == ["lo"]


def test_no_other_process_is_seen(run: Run) -> None:
    said = run(
        "for p in /proc/[0-9]*; do readlink $p/exe || echo hidden; done; echo; cat /proc/self/stat"
    ).log
    assert len(said.split(b"\n\n")[0].splitlines()) <= 3, "init, the shell, and at most a reader"
    assert str(os.getpid()).encode() not in said


def test_init_is_no_way_out(run: Run) -> None:
    inside = set(run("", command=("/bin/ls", "/")).log.split())
    for place in ("root", "cwd", "fd"):
        seen = run(
            f"for p in /proc/1/{place}/ /proc/1/{place}/*/; do ls $p 2>/dev/null || true; done"
        ).log.split()
        below = {name for name in seen if not name.isdigit()}
        assert not below & {b"home", b"root", b"boot", b"var"} and (place != "fd" or not below - inside)


def test_only_standard_descriptors_are_open(run: Run) -> None:
    said = run("", command=("/bin/ls", "-l", "/proc/self/fd")).log.decode().splitlines()[1:]
    kept = {line.split()[-3]: line.split()[-1] for line in said}
    assert kept.pop("3").startswith("/proc/")  # the folder being read
    assert sorted(kept) == ["0", "1", "2"] and kept["0"] == "/dev/null"


@pytest.mark.parametrize(
    "place",
    [
        "/x",
        "/bin/sh",
        "/bin/x",
        "/in/x",
        "/in/a",
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
    ],
)
def test_nothing_but_out_and_tmp_can_be_written(run: Run, store: Store, place: str) -> None:
    with pytest.raises(ActionError):
        run(f": >> {place}", inputs={"a": store.cas.put_bytes(b"A")})


def test_inputs_cannot_be_changed(run: Run, store: Store) -> None:
    blob = store.cas.put_bytes(b"precious\n")
    tries = ("chmod 777 a", "rm a", "ln a /out/a", "mv a /out/b", "mount -o remount,rw,bind /in")
    run("; ".join(f"if {one}; then exit 1; fi" for one in tries), inputs={"a": blob})
    assert store.cas.verify(blob)


def test_no_capability_is_left_or_can_be_gained(run: Run) -> None:
    said = dict(
        line.split(":\t") for line in run("cat /proc/self/status").log.decode().splitlines() if ":\t" in line
    )
    assert {said[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert said["NoNewPrivs"] == "1"
    with pytest.raises(ActionError):
        run("mount -t tmpfs none /tmp")
    with pytest.raises(ActionError):
        run("mknod /out/x c 1 3")


def test_the_top_of_the_root_is_the_layers_and_ours(run: Run) -> None:
    names = set(run("", command=("/bin/ls", "/")).log.decode().split())
    assert names - {"lib", "lib64", "usr"} == {"bin", "proc", "dev", "tmp", "in", "out"}


def test_devices_are_few(run: Run) -> None:
    names = set(run("", command=("/bin/ls", "/dev")).log.decode().split())
    ours = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm"}
    assert ours <= names <= ours | {"pts", "ptmx", "core", "console"}
    assert run("echo x > /dev/null; head -c 3 /dev/zero | md5sum; touch /dev/shm/x").log.startswith(
        b"693e9af84d3dfcc71e"
    )


def test_nothing_passes_from_one_action_to_the_next(run: Run) -> None:
    run("touch /tmp/x /dev/shm/x /out/x", "x")
    assert run("ls /tmp /dev/shm /out /in").log.split() == [b"/dev/shm:", b"/in:", b"/out:", b"/tmp:"]


def test_no_shared_memory_passes_either(run: Run) -> None:
    assert b"id:" in run("ipcmk -M 4096").log
    assert len(run("cat /proc/sysvipc/shm").log.splitlines()) == 1, "a heading"


def test_process_ids_are_those_of_the_run_before(run: Run) -> None:
    script = "echo $$; sh -c 'echo $$; exit 0'; for i in 1 2 3 4 5 6 7 8; do ls / > /dev/null; done; :"
    first = run(script).log.split()
    assert first == run(script).log.split() and all(int(pid) < 10 for pid in first)


def test_signals_to_init_do_nothing(run: Run) -> None:
    for number in (1, 2, 9, 10, 15, 19):
        run(f"kill -{number} 1 || :; echo still here")
    run("kill -9 -1 || :")
    assert run("echo fine").log == b"fine\n"


def test_a_session_of_its_own_does_not_save_it(run: Run) -> None:
    word = marker()
    run(
        f"setsid sleep {word} & setsid sh -c 'trap \"\" TERM HUP INT; sleep {word}; sleep {word}' & sleep 0.2"
    )
    assert gone(word)


def test_what_is_left_running_ends_with_the_command(run: Run) -> None:
    word = marker()
    began = time.monotonic()
    run(f"sleep {word} & mkdir /tmp/x")
    assert time.monotonic() - began < 60
    assert gone(word)


def test_actions_at_once_do_not_meet(run: Run, store: Store) -> None:
    results: list[Blob] = []

    def one(number: int) -> None:
        script = 'test -z "$(ls /tmp)"; cat a > /tmp/x; sleep 0.1; cat /tmp/x > /out/x'
        staged = {"a": store.cas.put_bytes(b"%d\n" % number)}
        results.append(run(script, "x", inputs=staged).outputs["x"])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(store.cas.read, results)) == [b"%d\n" % number for number in range(5)]


# -- stopping ---------------------------------------------------------------------------------


def test_timeout_ends_all_of_it(run: Run) -> None:
    word = marker()
    with pytest.raises(ActionError) as caught:
        run(f"trap '' TERM; echo before; sleep {word} & sleep {word}", timeout=0.5)
    assert caught.value.reason == "action-timeout" and b"before" in caught.value.log
    assert gone(word)


def test_cancel_ends_all_of_it(run: Run) -> None:
    word, cancel = marker(), threading.Event()
    threading.Timer(0.4, cancel.set).start()
    with pytest.raises(ActionError) as caught:
        run(f"sleep {word} & sleep {word}", cancel=cancel)
    assert caught.value.reason == "action-cancelled"
    assert gone(word)


VICTIM = """
import sys, threading
from pathlib import Path
from kairosbuild.core.digest import Blob
from kairosbuild.execute import sandbox
from kairosbuild.graph.action import Action
from kairosbuild.store.store import Store
kind, home, digest, size, word, *bwrap = sys.argv[1:]
store = Store(Path(home))
more = {"bwrap": tuple(bwrap)} if bwrap else {}
executor = getattr(sandbox, kind)(store, **more)
action = Action(("/bin/sh", "-c", f"sleep {word} & sleep {word}"), (Blob(digest, int(size)),))
executor.execute(action, name="victim", scratch=store.cas.tmp(), cancel=threading.Event())
"""


def test_killed_with_its_parent(executor: Any, store: Store, root: Blob) -> None:
    word = marker()
    bwrap = [peer("bwrap", "bubblewrap")] if isinstance(executor, BubblewrapExecutor) else []
    words = [
        sys.executable,
        "-c",
        VICTIM,
        type(executor).__name__,
        store.home,
        root.digest,
        str(root.size),
        word,
    ]
    victim = subprocess.Popen([*words, *bwrap], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 30
    while len(running(word)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running(word)) >= 2
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert gone(word)


# -- roots ------------------------------------------------------------------------------------


def test_a_stack_is_seen_as_one_root(run: Run, store: Store, root: Blob) -> None:
    low = put_layer(
        store,
        [
            (Entry("data", "dir", 0o755), None),
            (Entry("data/low", "file"), b"low"),
            (Entry("data/both", "file"), b"low"),
            (Entry("old", "dir", 0o755), None),
            (Entry("old/file", "file"), b"x"),
            (Entry("gone", "file"), b"x"),
            (Entry("kind", "dir", 0o755), None),
            (Entry("kind/x", "file"), b"x"),
        ],
    ).layer
    high = put_layer(
        store,
        [
            (Entry("data", "dir", 0o755), None),
            (Entry("data/both", "file"), b"high"),
            (Entry(".wh.gone", "file"), b""),
            (Entry("old", "dir", 0o755), None),
            (Entry("old/.wh..wh..opq", "file"), b""),
            (Entry("old/new", "file"), b"x"),
            (Entry("kind", "file"), b"file now"),
        ],
    ).layer
    said = run(
        "cat /data/low /data/both /kind; ls /old; ls /gone 2>/dev/null || echo none", root=(root, low, high)
    )
    assert said.log == b"lowhighfile nownew\nnone\n"


def test_the_order_of_layers_counts(run: Run, store: Store, root: Blob) -> None:
    one, two = file_layer(store, "which", b"one"), file_layer(store, "which", b"two")
    assert run("cat /which", root=(root, one, two)).log == b"two"
    assert run("cat /which", root=(root, two, one)).log == b"one"


def test_what_a_root_has_at_our_places_is_not_seen(run: Run, store: Store, root: Blob) -> None:
    odd = put_layer(
        store,
        [
            (Entry("tmp", "symlink", 0o777, target="/bin"), None),
            (Entry("in", "dir", 0o755), None),
            (Entry("in/x", "file"), b"x"),
        ],
    ).layer
    assert run("ls /in /tmp; touch /tmp/y", root=(root, odd)).log.split() == [b"/in:", b"/tmp:"]


def test_local_executor_takes_both_kinds(store: Store, root: Blob, tmp_path: Path) -> None:
    local = LocalExecutor(store)
    action = Action(("/bin/sh", "-c", "echo x > /out/x"), (root,), outputs=("x",))
    done = local.execute(action, name="n", scratch=tmp_path, cancel=threading.Event())
    local.close()
    assert store.cas.read(done.outputs["x"]) == b"x\n"
