"""Kind `boot-test`: a disk started in QEMU until it says what is expected of it.

The verdict depends on the disk's digest and what is expected, so it is remembered as any output is;
only a boot that passed has one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.boot import qemu
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.recipe.fields import choice, duration, integer, ref, text

_GRACE = 60  # seconds the sandbox waits longer than the driver inside


def _complaint(expect: str) -> str:
    try:
        re.compile(expect)
    except re.error as error:
        return f"{expect!r} is no regular expression: {error}"
    return ""


@dataclass(frozen=True, slots=True)
class BootTestSpec:
    """A start that has to succeed."""

    artifact: str = ref("The disk that is started.", accepts=("disk",))
    expect: str = text(
        "`multi-user`, `login`, or a regular expression the serial console has to show.",
        "multi-user",
        least=1,
        check=_complaint,
    )
    memory: int = integer("The machine's memory in MiB.", 1024, least=256)
    cpus: int = integer("The machine's processors.", 2, least=1, most=64)
    timeout: int | None = duration("Give up after so long.", 600, hint=True)
    accel: str = choice("`kvm` where /dev/kvm works, else emulation.", ("tcg", "kvm"), "tcg", hint=True)


class BootTest:
    """See the module."""

    name: ClassVar[str] = "boot-test"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = BootTestSpec
    produces: ClassVar[str] = "verdict"

    def tools(self, spec: BootTestSpec) -> tuple[str, ...]:
        """QEMU and its firmware."""
        return ("qemu",)

    def lock(self, spec: BootTestSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Start it; raise `boot-failed` with the end of its console, or say that it passed."""
        spec: BootTestSpec = task.spec
        disk, disk_format = _disk(task)
        boot = _boot(task, disk, disk_format)
        if not boot.passed:
            raise NodeError(
                f"{task.name}: the machine did not come to {spec.expect!r}: {boot.why}\n{boot.last()}",
                reason="boot-failed",
                hint="the node's log has the whole console",
            )
        verdict = {
            "schema": 1,
            "passed": True,
            "expect": spec.expect,
            "artifact": disk.digest,
            "kernel": boot.kernel,
        }
        return {"verdict": task.put_bytes(dumps(verdict))}


def _disk(task: Task) -> tuple[Blob, str]:
    """The disk and the format its artifact document says it has."""
    outputs = task.inputs["artifact"][0].outputs
    file: dict[str, Any] = loads(task.path(outputs["artifact"]).read_bytes())["files"][0]
    return Blob(file["digest"], file["size"]), str(file["mediaType"]).rpartition(".")[2]


def _boot(task: Task, disk: Blob, disk_format: str) -> qemu.Boot:
    spec: BootTestSpec = task.spec
    seconds = spec.timeout or 600
    machine = qemu.Machine(spec.cpus, spec.memory, spec.accel)
    done = task.execute(
        Action(
            qemu.COMMAND,
            (task.tools("qemu"),),
            {"driver": task.put_bytes(qemu.driver()), "disk": disk},
            qemu.OUTPUTS,
            env=qemu.environment(machine, expect=spec.expect, disk_format=disk_format, seconds=seconds),
            devices=("/dev/kvm",) if spec.accel == "kvm" else (),
            platform=task.platform,
            timeout=seconds + _GRACE,
        )
    )
    return qemu.judge(*(task.path(done.outputs[name]).read_bytes() for name in qemu.OUTPUTS))
