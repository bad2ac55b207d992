"""Kind `boot-test`: an artifact started in QEMU until it says, and is, what is expected of it.

The verdict depends on the artifact's digest and what is expected, so it is remembered as any output is;
only a boot that passed has one. Console and screen are outputs too, for people: they differ each time.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.boot import inside, qemu
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, duration, flag, integer, records, ref, source, text, texts

_GRACE = 60  # seconds the sandbox waits longer than the driver inside
_ENABLE = uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44")  # OVMF's own switch
_NON_VOLATILE = 0x3
_OWNER = uuid.UUID("0f1f3b86-2d0a-4f0c-9d49-6b6275696c64")
_STAMP = struct.pack("<HBBBBBxIhBx", 2020, 1, 1, 0, 0, 0, 0, 0, 0)  # EFI_TIME of the enrolment
_FORMATS = {"vhd": "vpc", "gce": "raw"}  # what QEMU calls them


def _complaint(expect: str) -> str:
    try:
        re.compile(expect)
    except re.error as error:
        return f"{expect!r} is no regular expression: {error}"
    return ""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command on the machine."""

    run: str = text("What a shell there runs, as root.", least=1)
    expect: str = text("A regular expression that its output shows.", "", check=_complaint)
    status: int = integer("The status it ends with.", 0, least=0, most=255)


@dataclass(frozen=True, slots=True)
class BootTestSpec:
    """A start that has to succeed."""

    artifact: str = ref("What is started.", accepts=("disk", "iso", "uki", "netboot"))
    firmware: str = choice("The machine's firmware.", qemu.FIRMWARES, "uefi")
    medium: str = choice(
        "How the artifact is given to the machine: an ISO as `cdrom` or as a `disk`; `auto` is its own way.",
        ("auto", "disk", "cdrom"),
        "auto",
    )
    expect: str = text(
        "`multi-user`, `login`, `refused` (by the firmware), or a regular expression the serial console has to "
        "show.",
        "multi-user",
        least=1,
        check=_complaint,
    )
    kernel: str = text("A regular expression the kernel's version has to match.", "", check=_complaint)
    failed: tuple[str, ...] = texts("Units that may have failed; by default none.", ())
    modules: tuple[str, ...] = texts("Kernel modules that are loaded or built in.", ())
    commands: tuple[CommandSpec, ...] = records("Commands and what they say.", CommandSpec, ())
    checks: bool = flag(
        "Look inside: failed units, modules, commands. They are handed to the machine by the emulator and run by "
        "its initrd, except under Secure Boot.",
        True,
    )
    enrolled: str = source(
        "A folder with PK.crt, KEK.crt and db.crt that the firmware has enrolled; with `secure-boot` and without "
        "it, the machine is in setup mode.",
        "",
    )
    tpm: bool = flag("The machine has a TPM 2.0.")
    memory: int = integer("The machine's memory in MiB.", 1024, least=256)
    cpus: int = integer("The machine's processors.", 2, least=1, most=64)
    timeout: int | None = duration("Give up after so long.", 600, hint=True)
    accel: str = choice("`kvm` where /dev/kvm works, else emulation.", ("tcg", "kvm"), "tcg", hint=True)


class BootTest:
    """See the module."""

    name: ClassVar[str] = "boot-test"
    version: ClassVar[int] = 3
    Spec: ClassVar[type] = BootTestSpec
    produces: ClassVar[str] = "verdict"

    def tools(self, spec: BootTestSpec) -> tuple[str, ...]:
        """QEMU, its firmware, a TPM."""
        return ("qemu",)

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What cannot be asked of a machine."""
        spec = declaration.spec
        if declaration.sources.get("enrolled") and spec["firmware"] != "secure-boot":
            yield "enrolled", "keys are enrolled for Secure Boot", "firmware: secure-boot"
        for field in ("modules", "commands"):
            if spec[field] and spec["firmware"] == "secure-boot":
                yield (
                    field,
                    "nothing is handed to a machine under Secure Boot",
                    "test it with firmware: uefi too",
                )
            elif spec[field] and not spec["checks"]:
                yield field, "there are no checks inside", "leave `checks: false` out"

    def lock(self, spec: BootTestSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Start it; raise `boot-failed` with the end of its console, or say that it passed."""
        spec: BootTestSpec = task.spec
        checks = _checks(spec)
        machine = qemu.Machine(spec.cpus, spec.memory, spec.accel, spec.firmware, spec.tpm)
        made = _run(task, machine, _given(task), checks)
        boot = qemu.judge(*(task.path(made[name]).read_bytes() for name in ("verdict", "serial")))
        said = task.path(made["guest"]).read_bytes().decode("utf-8", "replace")
        if why := _why(spec, checks, boot, said):
            raise NodeError(
                f"{task.name}: the machine did not come to {spec.expect!r}: {why}\n{boot.last()}",
                reason="boot-failed",
                hint="the node's log has the whole console",
            )
        verdict = {
            "schema": 1,
            "passed": True,
            "expect": spec.expect,
            "firmware": spec.firmware,
            "artifact": task.inputs["artifact"][0].outputs["artifact"].digest,
            "kernel": boot.kernel,
        }
        return {"verdict": task.put_bytes(dumps(verdict)), "serial": made["serial"], "screen": made["screen"]}


@dataclass(frozen=True, slots=True)
class _Given:
    """What the machine starts from, and the inputs that takes."""

    medium: qemu.Medium
    inputs: Mapping[str, Blob]


def _checks(spec: BootTestSpec) -> inside.Checks:
    if not spec.checks or spec.firmware == "secure-boot" or spec.expect == "refused":
        return inside.Checks()
    commands = tuple(inside.Command(one.run, one.expect, one.status) for one in spec.commands)
    return inside.Checks(spec.failed, spec.modules, commands)


def _given(task: Task) -> _Given:
    """The medium that the artifact's document asks for."""
    outputs = task.inputs["artifact"][0].outputs
    document: dict[str, Any] = loads(task.path(outputs["artifact"]).read_bytes())
    files = {one["title"]: Blob(one["digest"], one["size"]) for one in document["files"]}
    what = str(document["artifactType"]).split(".")[-2]
    first = document["files"][0]
    kind = str(first["mediaType"]).removeprefix("application/vnd.kairosbuild.")
    if what == "netboot":
        www = {f"www/{title}": blob for title, blob in files.items()}
        bios = task.spec.firmware == "bios"
        wanted = ".ipxe" if bios else ".efi"
        bootfile = next((title for title in files if title.endswith(wanted)), "")
        return _Given(qemu.Medium("network", bootfile=bootfile), www)
    blob = Blob(first["digest"], first["size"])
    if what == "disk":
        form = kind.removeprefix("disk.")
        sector = int(document["annotations"].get("sector-size", 512))
        disk = _unpacked(task, blob) if form == "gce" else blob
        return _Given(qemu.Medium("disk", _FORMATS.get(form, form), sector), {"disk": disk})
    if what == "iso":
        return _Given(qemu.Medium("disk" if task.spec.medium == "disk" else "cdrom"), {"disk": blob})
    return _Given(qemu.Medium("disk"), {"disk": _esp(task, blob)})


def _unpacked(task: Task, archive: Blob) -> Blob:
    """The disk inside of Google's archive, as its cloud unpacks it."""
    from kairosbuild.boot import gce

    return task.put_file(gce.unpacked(task.path(archive), task.scratch / "disk.raw"))


def _esp(task: Task, uki: Blob) -> Blob:
    """A disk with nothing but a unified kernel image where firmware looks for one."""
    from kairosbuild.artifacts.partitions import Esp, PartitionSpec, Table

    kernel = task.path(uki).read_bytes()
    contents = {"esp": Esp({"EFI/BOOT/BOOTX64.EFI": kernel})}
    disk, _ = Table(task.name, (PartitionSpec(type="esp"),), contents, uki.digest).lay_out()
    disk.write_raw(task.scratch / "esp")
    return task.put_file(task.scratch / "esp")


def _run(task: Task, machine: qemu.Machine, given: _Given, checks: inside.Checks) -> Mapping[str, Blob]:
    spec: BootTestSpec = task.spec
    seconds = spec.timeout or 600
    inputs = {"driver": task.put_bytes(qemu.driver()), **given.inputs}
    if spec.enrolled:
        inputs["vars"] = _variables(task)
    if checks:
        inputs["test"] = task.put_bytes(inside.handed(checks))
    action = Action(
        qemu.command(machine, given.medium, test=bool(checks)),
        (task.tools("qemu"),),
        inputs,
        qemu.OUTPUTS,
        env=qemu.environment(expect=spec.expect, seconds=seconds, test=bool(checks), tpm=spec.tpm),
        devices=("/dev/kvm",) if spec.accel == "kvm" else (),
        platform=task.platform,
        timeout=seconds + _GRACE,
    )
    return task.execute(action).outputs


def _variables(task: Task) -> Blob:
    """The firmware's variables with the project's keys in them, as if somebody had enrolled them."""
    from kairosbuild.boot import ovmf
    from kairosbuild.boot.files import Files, index_of
    from kairosbuild.keys import enrolment
    from kairosbuild.keys.certificate import certificate

    tree = task.path(task.tools("qemu"))
    flash = Files([(tree, index_of(tree))]).read("usr/share/OVMF/OVMF_VARS_4M.fd")
    if flash is None:
        raise NodeError("the tools tree `qemu` has no OVMF_VARS_4M.fd", reason="missing-tool")
    found = [ovmf.Variable("SecureBootEnable", _ENABLE, _NON_VOLATILE, b"\1")]
    for name in enrolment.NAMES:
        pem = task.source_path("enrolled", f"{name}.crt").read_bytes()
        content = enrolment.signature_list([certificate(pem, f"{name}.crt")], _OWNER)
        found.append(ovmf.Variable(name, enrolment.VENDOR[name], enrolment.ATTRIBUTES, content, _STAMP))
    return task.put_bytes(ovmf.write(flash, found))


def _why(spec: BootTestSpec, checks: inside.Checks, boot: qemu.Boot, said: str) -> str:
    """What speaks against it, "" for nothing."""
    if spec.expect == "refused":
        return "" if boot.refused else boot.why
    if not boot.passed:
        return boot.why
    if not re.search(spec.kernel, boot.kernel):
        return f"its kernel is {boot.kernel}, which is not {spec.kernel!r}"
    return "; ".join(inside.complaints(checks, said))
