"""Kind boot-test: what is a pass, what is said of a failure. The machine is played; see test_boot_debian."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from boot_task import BootTask

from kairosbuild.boot import qemu
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Input, Outputs
from kairosbuild.kinds.boot_test import BootTest, BootTestSpec
from kairosbuild.recipe.fields import infos
from kairosbuild.store.store import Store

CONSOLE = (
    b"\x1b[0m[ 0.0] Linux version 6.12.1 (x)\r\n"
    b"[\x1b[32m  OK  \x1b[0m] Reached target \x1b[1mmulti-user.target\x1b[0m\r\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def build(store: Store, verdict: str, console: bytes, **spec: Any) -> tuple[Outputs, BootTask]:
    def play(action: Action) -> Mapping[str, bytes]:
        return {"verdict": verdict.encode() + b"\n", "serial": console}

    disk = store.cas.put_bytes(b"a disk")
    file = {**disk.json(), "title": "os.qcow2", "mediaType": "application/vnd.kairosbuild.disk.qcow2"}
    outputs = {"disk": disk, "artifact": store.cas.put_bytes(dumps({"schema": 1, "files": [file]}))}
    given = {"artifact": (Input("disk", "disk", outputs),)}
    task = BootTask(store, BootTestSpec(artifact="disk", **spec), play, inputs=given)
    return BootTest().build(task), task


def test_a_pass_is_a_verdict_without_a_clock(store: Store) -> None:
    outputs, task = build(store, "reached", CONSOLE)
    assert set(outputs) == {"verdict"}
    verdict = loads(task.path(outputs["verdict"]).read_bytes())
    assert verdict["passed"] is True
    assert verdict["kernel"] == "6.12.1"
    assert verdict["artifact"] == store.cas.put_bytes(b"a disk").digest
    again, _ = build(store, "reached", CONSOLE.replace(b"0.0", b"9.9"))
    assert again == outputs


@pytest.mark.parametrize("verdict", ["failed", "restarted", "stopped", "timeout"])
def test_a_failure_says_why_and_shows_the_console(store: Store, verdict: str) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, verdict, CONSOLE + b"\n".join(b"line %d" % n for n in range(99)))
    assert caught.value.reason == "boot-failed"
    assert "line 98" in caught.value.message
    assert "line 9\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_marker_without_a_kernel_is_no_boot(store: Store) -> None:
    with pytest.raises(KbuildError) as caught:
        build(store, "reached", b"Reached target multi-user.target")
    assert "no kernel" in caught.value.message


def test_the_machine_gets_what_the_disk_says(store: Store) -> None:
    _, task = build(store, "reached", CONSOLE, expect="login", memory=512, cpus=1, timeout=77)
    (action,) = task.actions
    assert action.env["FORMAT"] == "qcow2"
    assert action.env["MEMORY"] == "512"
    assert action.env["SECONDS_MAX"] == "77"
    assert action.timeout is not None and action.timeout > 77
    assert action.devices == ()


@pytest.mark.parametrize(
    ("expect", "line", "shows"),
    [
        ("multi-user", "[  OK  ] Reached target multi-user.target - Multi-User System.", True),
        ("multi-user", "[ 9.1] systemd[1]: Reached target multi-user.target - Multi-User.", True),
        ("multi-user", "Queued start job for default target multi-user.target", False),
        ("login", "vm login: ", True),
        ("ready [0-9]+", "ready 42", True),
    ],
)
def test_markers(expect: str, line: str, shows: bool) -> None:
    env = qemu.environment(qemu.Machine(), expect=expect, disk_format="raw", seconds=1)
    assert bool(re.search(env["EXPECT"], line)) is shows


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("Kernel panic - not syncing: VFS", True),
        ("Oops: 0000 [#1]", True),
        ("[FAILED] Failed to start x.service - X.", True),
        ("kbuild: FAILED: layer abc is not on /dev/vda2", True),
        ("device-mapper: verity: 7:0: data block 3 is corrupted", True),
        ("Starting a.service", False),
        ("Started a.service", False),
    ],
)
def test_failures(line: str, bad: bool) -> None:
    assert bool(re.search(qemu.FAILURE, line)) is bad


def test_the_driver_asks_for_nothing_it_is_not_given() -> None:
    script = qemu.driver().decode()
    given = qemu.environment(qemu.Machine(), expect="login", disk_format="raw", seconds=1)
    assert set(re.findall(r"\$\{?([A-Z_]+)", script)) <= set(given)
    assert all(name in script for name in given)


def test_a_bad_expression_is_told_in_the_recipe() -> None:
    check = infos(BootTestSpec)["expect"].check
    assert check is not None
    assert "no regular expression" in check("(")
    assert check("login") == ""
