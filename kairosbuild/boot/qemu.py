"""QEMU as a test bench: what is started in the sandbox, and what its serial console comes to.

A machine of its own for each test: fresh firmware variables, writes that go nowhere, no network, and no
second start (`-no-reboot`), so that a reset cannot pass for success.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("/bin/sh", "-eu", "/in/driver")
"""Run in the tools tree `qemu`, with `driver` and `disk` as inputs; leaves `verdict` and `serial`."""

OUTPUTS = ("verdict", "serial")
FAILURE = r"Oops|not syncing|Failed to start|kbuild: FAILED|verity: .* is corrupted"
"""What must not stand on the console of a machine that starts well, as an extended regular expression."""

EXPECT = {"multi-user": r"Reached target .*multi-user\.target", "login": r"login: *$"}
"""Markers by name."""

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]")
_KERNEL = re.compile(r"Linux version (\S+)")
_SAID = {
    "failed": "it said what a machine that starts well does not",
    "restarted": "it started a second time",
    "stopped": "it restarted or turned itself off",
    "timeout": "it took too long",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores, memory in MiB, and what runs the instructions: `tcg` (emulation, anywhere) or `kvm`."""

    cpus: int = 2
    memory: int = 1024
    accel: str = "tcg"


@dataclass(frozen=True, slots=True)
class Boot:
    """How a boot went: `outcome` is `reached`, or why not; `kernel` its version ("" when none came up)."""

    outcome: str
    kernel: str
    console: str

    @property
    def passed(self) -> bool:
        """Whether what was expected showed, in the first and only start."""
        return self.outcome == "reached" and bool(self.kernel)

    @property
    def why(self) -> str:
        """What went wrong, in words."""
        return _SAID.get(self.outcome, "no kernel started" if not self.kernel else self.outcome)

    def last(self, lines: int = 25) -> str:
        """The end of the console, for a person to read."""
        return "\n".join([line for line in self.console.splitlines() if line.strip()][-lines:])


def driver() -> bytes:
    """The program that starts the machine and watches it."""
    return Path(__file__).with_name("qemu.sh").read_bytes()


def environment(machine: Machine, *, expect: str, disk_format: str, seconds: int) -> Mapping[str, str]:
    """What the driver reads; `expect` is a marker's name or an extended regular expression."""
    kvm = machine.accel == "kvm"
    return {
        "EXPECT": EXPECT.get(expect, expect),
        "FAILURE": FAILURE,
        "FORMAT": disk_format,
        "SECONDS_MAX": str(seconds),
        "MEMORY": str(machine.memory),
        "CPUS": str(machine.cpus),
        "ACCEL": "kvm" if kvm else "tcg,thread=multi",
        "CPU": "host" if kvm else "Nehalem",
    }


def judge(verdict: bytes, serial: bytes) -> Boot:
    """What the driver's two outputs say."""
    console = _CONTROL.sub(b"", serial).decode("utf-8", "replace")
    kernels = _KERNEL.findall(console)
    return Boot(verdict.decode().strip(), kernels[0] if kernels else "", console)
