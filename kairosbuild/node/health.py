"""Health checks: asked again and again until all are well or the time is over."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from kairosbuild.node.settings import Health

_PAUSE = 1.0
_COMMAND = 60.0
SYSTEMD = Path("/run/systemd/system")
OPENRC = Path("/run/openrc")

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
            return f"{complaint} after {health.timeout} seconds"
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


def _starting() -> str:
    """Whether the machine is still starting, as its service manager sees it."""
    if SYSTEMD.exists():
        done = subprocess.run(
            ["systemctl", "is-system-running"], capture_output=True, text=True, check=False, timeout=_COMMAND
        )
        word = done.stdout.strip()
        return "" if word in ("running", "degraded") else f"the system is {word or 'not answering'}"
    if OPENRC.exists():
        level = OPENRC / "softlevel"
        ready = level.exists() and level.read_text().strip() == "default"
        ready = ready and not (OPENRC / "rc.starting").exists()
        return "" if ready else "the runlevel default is not reached"
    return ""
