"""Layer steps: what is captured, that it is the same for everybody, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostroot import file_layer, host_root, put_layer
from peers import find, outside_of_a_chroot, peer

from kairosbuild.core.digest import Blob
from kairosbuild.execute import userns
from kairosbuild.execute.executor import ActionError
from kairosbuild.execute.layerstep import LayerExecutor
from kairosbuild.graph.action import Action, ActionResult
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.store.store import Store

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store"))
    yield store
    for tree in list(store.trees.root.iterdir()):
        store.trees.destroy(tree)


@pytest.fixture(scope="module")
def root(store: Store) -> Blob:
    return host_root(store).layer


@pytest.fixture(scope="module")
def executor(store: Store) -> LayerExecutor:
    return LayerExecutor(store, epoch=EPOCH)


Run = Callable[..., ActionResult]


@pytest.fixture(params=["all", "one"])
def owners(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every owner exists in the step's namespace, or only one, as for a user without subordinate ids."""
    if request.param == "all" and userns.alone():
        pytest.skip("neither root nor subordinate ids")
    if request.param == "one":
        monkeypatch.setattr(userns, "alone", lambda: True)
    return str(request.param)


@pytest.fixture
def run(owners: str, executor: LayerExecutor, root: Blob, tmp_path: Path) -> Run:
    def once(
        script: str, *more_layers: Blob, cancel: threading.Event | None = None, **more: Any
    ) -> ActionResult:
        action = Action(("/bin/sh", "-euc", script), (root, *more_layers), layer=True, **more)
        return executor.execute(action, name="node", scratch=tmp_path, cancel=cancel or threading.Event())

    return once


def members(store: Store, result: ActionResult) -> dict[str, tarfile.TarInfo]:
    assert result.layer is not None
    with tarfile.open(store.cas.path(result.layer.layer.digest)) as tar:
        return {member.name: member for member in tar}


def left_behind(store: Store) -> list[str]:
    return [path.name for path in (store.root / "tmp").iterdir()]


def test_changes_become_a_layer(run: Run, store: Store) -> None:
    low = put_layer(
        store,
        [
            (Entry("etc", "dir", 0o755), None),
            (Entry("etc/old", "file"), b"old"),
            (Entry("etc/kept", "file"), b"kept"),
            (Entry("etc/secret", "file", 0o640, gid=42), b"s"),
            (Entry("box", "dir", 0o750, uid=7), None),
            (Entry("box/x", "file"), b"x"),
        ],
    ).layer
    found = members(
        store,
        run(
            "echo new > /etc/new; rm /etc/old; echo more >> /etc/secret; rm -r /box; mkdir /box; : > /box/y;"
            "mkdir -p /opt/a; cp /bin/cat /opt/a/tool; chown 1:2 /opt/a/tool; chmod 4755 /opt/a/tool;"
            "cd /opt; ln a/tool a/same; ln -s tool a/link; chown -h 3:4 a/link; mkfifo pipe",
            low,
        ),
    )
    assert set(found) == {
        "etc",
        "etc/new",
        "etc/.wh.old",
        "etc/secret",
        "box",
        "box/.wh..wh..opq",
        "box/y",
        "opt",
        "opt/a",
        "opt/a/tool",
        "opt/a/same",
        "opt/a/link",
        "opt/pipe",
    }
    first, second = sorted(("opt/a/tool", "opt/a/same"))
    assert (found[first].mode, found[first].uid, found[first].gid) == (0o4755, 1, 2)
    assert found[second].islnk() and found[second].linkname == first
    assert (found["opt/a/link"].linkname, found["opt/a/link"].uid, found["opt/a/link"].gid) == ("tool", 3, 4)
    assert (found["etc/secret"].mode, found["etc/secret"].gid) == (0o640, 42)
    assert found["opt/pipe"].isfifo()


def test_times_are_the_epoch_at_most(run: Run, store: Store) -> None:
    found = members(store, run("touch /now; touch -d @1000000000 /then; mkdir /dir"))
    assert {name: member.mtime for name, member in found.items()} == {
        "now": EPOCH,
        "then": 1_000_000_000,
        "dir": EPOCH,
    }


def test_the_actions_own_epoch_wins(run: Run, store: Store) -> None:
    assert members(store, run("touch /x", env={"SOURCE_DATE_EPOCH": "5"}))["x"].mtime == 5


def test_the_sandbox_is_not_in_the_layer(run: Run, store: Store) -> None:
    result = run("touch /tmp/x /run/x /dev/x /out/x; ls / > /out/names; touch /real", outputs=("names",))
    assert set(members(store, result)) == {"real"}
    assert {b"in", b"out", b"proc", b"sys", b"run"} <= set(store.cas.read(result.outputs["names"]).split())


def test_nothing_changed_is_an_empty_layer(run: Run, store: Store) -> None:
    assert members(store, run("ls -R /bin > /dev/null; cat /bin/cat > /dev/null")) == {}


def test_drop_leaves_things_out(run: Run, store: Store) -> None:
    low = file_layer(store, "keep", b"below")
    found = members(
        store,
        run(
            "cd /; mkdir -p var/cache/a var/log; cd var; touch cache/a/b log/x-old log/x;"
            "rm /keep; ln log/x log/l",
            low,
            drop=("var/cache/*", "/var/log/*-old", "keep", "var/log/l"),
        ),
    )
    assert set(found) == {"var", "var/cache", "var/log", "var/log/x"}
    assert found["var/log/x"].isfile()


def test_index_describes_the_layer(run: Run, store: Store) -> None:
    result = run("mkdir /a; echo hello > /a/b")
    assert result.layer is not None
    index = Index.loads(store.cas.read(result.layer.index))
    assert list(index.paths()) == ["a", "a/b"]
    place = index["a/b"]
    data = store.cas.read(result.layer.layer)
    assert data[place.data : place.data + place.entry.size] == b"hello\n"


def test_steps_build_upon_each_other(run: Run, store: Store) -> None:
    one = run("mkdir /data; echo 1 > /data/one; chown 9 /data/one")
    two = run("stat -c %u /data/one; rm /data/one; echo 2 > /data/two", one.layer.layer)  # type: ignore[union-attr]
    assert two.log == b"9\n"
    three = run("ls /data", one.layer.layer, two.layer.layer)  # type: ignore[union-attr]
    assert three.log == b"two\n"


def test_a_root_of_nothing(executor: LayerExecutor, store: Store, tmp_path: Path) -> None:
    tool = store.cas.add_copy(Path(peer("busybox", "busybox-static")))
    action = Action(
        ("/in/busybox", "sh", "-euc", "/in/busybox mkdir /etc; echo x > /etc/x"),
        (),
        {"busybox": tool},
        executable=("busybox",),
        layer=True,
    )
    done = executor.execute(action, name="node", scratch=tmp_path, cancel=threading.Event())
    assert set(members(store, done)) == {"etc", "etc/x"}


def test_failure_is_told_and_leaves_nothing(run: Run, store: Store) -> None:
    before = left_behind(store)
    with pytest.raises(ActionError) as caught:
        run("mkdir -m 700 /a; chown 5 /a; touch /a/b; echo oh; exit 4")
    assert caught.value.reason == "action-failed" and "status 4" in caught.value.message
    assert caught.value.log == b"oh\n"
    assert left_behind(store) == before


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_stopping_leaves_nothing(run: Run, store: Store, how: str) -> None:
    before, word, cancel = left_behind(store), str(random.randrange(10**8, 10**9)), threading.Event()
    if how == "cancel":
        threading.Timer(0.7, cancel.set).start()
    with pytest.raises(ActionError) as caught:
        run(
            f"mkdir -m 700 /a; chown 5 /a; sleep {word} & sleep {word}",
            cancel=cancel,
            timeout=0.7 if how == "timeout" else None,
        )
    assert caught.value.reason == ("action-cancelled" if how == "cancel" else "action-timeout")
    deadline = time.monotonic() + 10
    while _running(word) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _running(word)
    assert left_behind(store) == before


def _running(word: str) -> bool:
    def line(place: Path) -> bytes:
        try:
            return place.read_bytes()
        except OSError:
            return b""

    return any(word.encode() in line(place).split(b"\0") for place in Path("/proc").glob("[0-9]*/cmdline"))


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw,bind /in",
        "echo x > /in/a",
        "chmod 777 /in/a",
        ": >> /proc/sys/kernel/core_pattern",
        ": >> /proc/sysrq-trigger",
        "mknod /dev/sda b 8 0",
    ],
)
def test_a_step_cannot_reach_the_host(run: Run, store: Store, script: str) -> None:
    blob = store.cas.put_bytes(b"precious\n")
    with pytest.raises(ActionError):
        run(f"mkdir /mnt; {script}", inputs={"a": blob})
    assert store.cas.verify(blob)


def test_a_step_sees_no_network_and_no_host(run: Run) -> None:
    said = run("cat /proc/net/dev; ls /; ls /proc/1/root/ || true; uname -n").log.decode()
    assert "kbuild" in said and "eth0" not in said
    assert not {"home", "root", "boot"} & set(said.split())


def test_layers_below_stay_as_they_are(run: Run, store: Store) -> None:
    low = file_layer(store, "x", b"as it was")
    run("echo changed > /x; rm -f /bin/cat", low)
    assert run("cat /x", low).log == b"as it was"


SCRIPT = (
    "cd /; mkdir -p srv/a home/u; cd srv; echo text > a/f; chown 42:43 a/f; chmod 2750 a;"
    "chown 1000:1000 /home/u;"
    "ln -s f a/l; rm /bin/kill; ln a/f h; chown 65534 h; id; stat -c '%u %a' a/f /bin/sh"
)
AS_SOMEBODY = """
import json, os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kairosbuild.core.digest import Blob
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.graph.action import Action
from kairosbuild.store.store import Store
store = Store(Path(sys.argv[2]) / "store")
root = store.cas.add_copy(Path(sys.argv[3]))
os.umask(0o077)
local = LocalExecutor(store, epoch=1700000000)
def run(script, **more):
    action = Action(("/bin/sh", "-euc", script), (root,), **more)
    return local.execute(action, name="n", scratch=store.cas.tmp(), cancel=threading.Event())
done = run(sys.argv[4], layer=True)
plain = run("id; echo $$; ls -lnd / /in /out /tmp /bin; touch /x 2>/dev/null || echo refused")
local.close()
said = done.log.decode(), plain.log.decode()
print(json.dumps([os.getuid(), done.layer.layer.digest, done.layer.index.digest, *said]))
for tree in list(store.trees.root.iterdir()):
    assert store.trees.destroy(tree), tree
"""


@pytest.fixture
def somebody() -> Iterator[str]:
    outside_of_a_chroot("a user namespace of an ordinary user")
    if os.geteuid() != 0 or not find("newuidmap", "uidmap"):
        pytest.skip("another user can only be made by root, with uidmap installed")
    name = f"kbtest{os.getpid()}"
    subprocess.run(["useradd", "--create-home", name], check=True, capture_output=True)
    yield name
    subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.mark.parametrize("path", [None, "/nonexistent"], ids=["uidmap", "no-uidmap"])
def test_an_ordinary_user_makes_the_same_layer(
    somebody: str, path: str | None, run: Run, store: Store, root: Blob
) -> None:
    ours = run(SCRIPT)
    user = pwd.getpwnam(somebody)
    with tempfile.TemporaryDirectory(prefix="kbuild-test-") as folder:
        Path(folder).chmod(0o755)
        package = Path(__file__).parents[2] / "kairosbuild"
        shutil.copytree(package, Path(folder, "kairosbuild"), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(store.cas.path(root.digest), Path(folder, "root.tar"))
        done = subprocess.run(
            [_python(user.pw_uid), "-c", AS_SOMEBODY, folder, user.pw_dir, f"{folder}/root.tar", SCRIPT],
            user=somebody,
            group=user.pw_gid,
            extra_groups=(),
            cwd="/",
            env={"PATH": path or os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    uid, layer, index, log, plain = json.loads(done.stdout)
    assert uid == user.pw_uid != 0
    assert ours.layer is not None
    assert (layer, index) == (ours.layer.layer.digest, ours.layer.index.digest)
    assert log == ours.log.decode()
    assert plain.startswith("uid=0 gid=0") and plain.endswith("refused\n")


def _python(uid: int) -> str:
    """An interpreter that another user may start; ours may lie in root's home."""
    for one in (sys.executable, "/usr/bin/python3"):
        words = [one, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(words, user=uid, cwd="/", check=False).returncode == 0:
                return one
        except PermissionError:
            continue
    pytest.skip("no interpreter that another user may start")


def test_owners_are_remembered_where_there_is_only_one(
    run: Run, store: Store, owners: str, root: Blob
) -> None:
    low = put_layer(
        store,
        [
            (Entry("a", "dir", 0o2755, uid=3, gid=4), None),
            (Entry("a/f", "file", 0o640, gid=42), b"f"),
            (Entry("a/l", "symlink", 0o777, uid=5, gid=6, target="f"), None),
            (Entry("a/s", "file", 0o4755, uid=7), b"s"),
        ],
    ).layer
    script = (
        "stat -c '%n %u:%g %a' /a /a/f /a/l /a/s; stat -Lc %u:%g /a/l; echo x >> /a/f; chmod 4755 /a/s;"
        "stat -c %u:%g /a/f; mv /a/f /a/g; stat -c %u:%g /a/g; ls -ln /a | head -3; cp -a /a /b;"
        "chown 9 /a/s; stat -c '%u:%g %a' /a/s; rm /a/g; echo n > /a/n; stat -c %u:%g /a/n; ln /a/s /a/t;"
        "cd /a; chown -h :8 l; chown -R 0:0 /b/l; chown 1:1 /nowhere || true; exec 3< /a/n; chown 11 /proc/self/fd/3"
    )
    result = run(script, low)
    assert result.log.decode().splitlines()[:8] == [
        "/a 3:4 2755", "/a/f 0:42 640", "/a/l 5:6 777", "/a/s 7:0 4755", "0:42", "0:42", "0:42", "total 8",
    ]  # fmt: skip
    found = {name: (one.uid, one.gid, oct(one.mode)) for name, one in members(store, result).items()}
    assert found["a/s"] == (9, 0, "0o755")  # a new owner takes the set-id bit away
    assert found["a/n"] == (11, found["a/n"][1], "0o644")
    assert found["a/l"][:2] == (5, 8) and found["b"][:2] == (3, 4)
    assert found["b/l"][:2] == (0, 0) and found["b/g"] == (0, 42, "0o640") and found["b/s"][0] == 7


def test_a_process_may_become_somebody_else(run: Run) -> None:
    assert b"ok" in run("setpriv --reuid 33 --regid 33 --clear-groups sh -c 'echo ok'").log


def test_without_subordinate_ids_a_worker_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    userns._mappers.cache_clear()
    userns.alone.cache_clear()
    try:
        assert userns.alone()
    finally:
        userns._mappers.cache_clear()
        userns.alone.cache_clear()
