"""Programs of another architecture: known to run here or not, and refused in one clear sentence."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kairosbuild.core.errors import HostError
from kairosbuild.execute import foreign, sandbox
from kairosbuild.execute.executor import ActionError
from kairosbuild.execute.foreign import HOST, refused, runs
from kairosbuild.execute.nodes import platform_of
from kairosbuild.execute.sandbox import LocalExecutor
from kairosbuild.graph.action import Action
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.store.store import Store

OTHER = "linux/arm64" if HOST == "linux/amd64" else "linux/amd64"
EMULATOR = {"linux/arm64": "qemu-aarch64", "linux/amd64": "qemu-x86_64"}[OTHER]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("enabled\ninterpreter /usr/libexec/q\nflags: POF\noffset 0\n", True),
        ("enabled\ninterpreter /usr/libexec/q\nflags: PO\noffset 0\n", False),
        ("disabled\ninterpreter /usr/libexec/q\nflags: F\n", False),
        (None, False),
    ],
)
def test_an_emulator_counts_when_it_is_held_open(tmp_path: Path, text: str | None, expected: bool) -> None:
    if text is not None:
        (tmp_path / EMULATOR).write_text(text)
    assert runs(OTHER, tmp_path) is expected
    assert runs(HOST, tmp_path) and not runs("linux/riscv64", tmp_path)


def test_a_layer_step_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "runs", lambda _: False)
    executor = LocalExecutor(Store(tmp_path))
    action = Action(("/bin/true",), (), layer=True, platform=OTHER)
    with pytest.raises(HostError) as caught:
        executor.execute(action, name="system", scratch=tmp_path, cancel=threading.Event())
    assert caught.value.reason == "foreign-platform" and "qemu-user-static" in caught.value.hint
    assert OTHER in caught.value.message and "system" in caught.value.message
    executor.close()


@pytest.mark.parametrize(("log", "reason"), [(foreign.SYMPTOM, "foreign-platform"), (b"no", "action-failed")])
def test_another_step_is_told_apart_by_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: bytes, reason: str
) -> None:
    def fail(*_: Any) -> Any:
        raise ActionError("x: exited with status 126", reason="action-failed", log=b"sh: " + log)

    monkeypatch.setattr(sandbox, "runs", lambda _: False)
    monkeypatch.setattr(LocalExecutor, "_execute", fail)
    executor = LocalExecutor(Store(tmp_path))
    with pytest.raises((HostError, ActionError)) as caught:
        executor.execute(
            Action(("x",), (), platform=OTHER), name="x", scratch=tmp_path, cancel=threading.Event()
        )
    assert caught.value.reason == reason
    executor.close()


def test_tools_run_on_this_machine_whatever_is_built() -> None:
    assert platform_of(Declaration("tools:apt", "tools", {}), OTHER) == HOST
    assert platform_of(Declaration("system", "packages", {}), OTHER) == OTHER
    assert platform_of(Declaration("system", "packages", {}, platform=HOST), OTHER) == HOST
    assert refused("x", OTHER).exit_code == 3
