"""Health checks: asked again and again until all are well or the time is over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kairosbuild.node.settings import Health

_PAUSE = 1.0
_COMMAND = 60.0
SYSTEMD = Path("/run/systemd/system")
OPENRC = Path("/run/openrc")
_SAID = {"": "not answering", "maintenance": "at a maintenance prompt"}
_NEVER_UP = ("initializing", "maintenance")
"""systemd's words for a machine that waits before its basic services, or gave up there and shows a prompt."""

Ask = Callable[..., bool]


def succeeds(*command: str) -> bool:
    """Whether a command ends well, within a minute."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_COMMAND)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def wait(
    health: Health,
    *,
    ask: Ask = succeeds,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    started: Callable[[], str] | None = None,
) -> str:
    """ "" once everything is well; what is not when the time is over."""
    end = clock() + health.timeout
    while complaint := complaints(health, ask, started or _starting):
        if clock() >= end:
            return f"{complaint} after {health.timeout} seconds{_because()}"
        sleep(_PAUSE)
    return ""


def complaints(health: Health, ask: Ask, started: Callable[[], str]) -> str:
    """What is not well right now."""
    if complaint := started():
        return complaint
    bad = [f"the unit {one} does not run" for one in health.units if not ask(*_asks(one))]
    bad += [f"{one!r} fails" for one in health.commands if not ask("/bin/sh", "-c", one)]
    return ", ".join(bad)


def _asks(unit: str) -> tuple[str, ...]:
    if SYSTEMD.exists():
        return ("systemctl", "is-active", "--quiet", unit)
    return ("rc-service", "--quiet", unit.removesuffix(".service"), "status")


def came_up() -> bool:
    """Whether the machine got as far as its basic services: if not, nobody can use it, whatever it was before."""
    return not SYSTEMD.exists() or _systemd() not in _NEVER_UP


def _starting() -> str:
    """Whether the machine is still starting, as its service manager sees it."""
    if SYSTEMD.exists():
        word = _systemd()
        return "" if word in ("running", "degraded") else f"the system is {_SAID.get(word, word)}"
    if OPENRC.exists():
        level = OPENRC / "softlevel"
        ready = level.exists() and level.read_text().strip() == "default"
        ready = ready and not (OPENRC / "rc.starting").exists()
        return "" if ready else "the runlevel default is not reached"
    return ""


def _because() -> str:
    """What systemd waits for or gave up, where it is not up for it."""
    if not SYSTEMD.exists() or (word := _systemd()) in ("running", "degraded"):
        return ""
    if word == "maintenance":
        failed = _systemctl("list-units", "--state=failed", "--plain", "--no-legend")
        return _named("failed", [line.split()[0] for line in failed])
    jobs = [line.split() for line in _systemctl("list-jobs", "--no-legend")]
    return _named("not done", [job[1] for job in jobs if job[-1] == "running"])


def _named(what: str, units: Sequence[str]) -> str:
    return f", {what}: {', '.join(units)}" if units else ""


def _systemd() -> str:
    """systemd's word for how far the machine is."""
    return " ".join(_systemctl("is-system-running"))


def _systemctl(*words: str) -> list[str]:
    """What systemctl says, by lines; nothing when systemd does not answer."""
    try:
        done = subprocess.run(
            ["systemctl", *words], capture_output=True, text=True, check=False, timeout=_COMMAND
        )
    except subprocess.TimeoutExpired:
        return []
    return [line for line in done.stdout.splitlines() if line.strip()]
