"""QEMU as a test bench: what is started in the sandbox, and what its serial console comes to.

A machine of its own for each test: fresh firmware variables, writes that go nowhere, no second start
(`-no-reboot`), so that a reset cannot pass for success, and no network but one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("/bin/sh", "-eu", "/in/driver")
"""Run in the tools tree `qemu`, with `driver` and what the machine starts from as inputs; leaves `OUTPUTS`."""

OUTPUTS = ("verdict", "serial", "guest", "screen")
FAILURE = r"Oops|not syncing|Failed to start|ERROR: .* failed to start|kbuild: FAILED|verity: .* is corrupted"
"""What must not stand on the console of a machine that starts well, as an extended regular expression."""

REFUSED = (
    r"BdsDxe: failed to load Boot.*(Access Denied|Security Violation)|Access Denied|Security [Vv]iolation"
)
EXPECT = {
    "multi-user": r"Reached target .*multi-user\.target",
    "login": r"login: *$",
    "refused": REFUSED,
}
"""Markers by name. `refused` is the firmware's word for what Secure Boot does not let start."""

EXPECT_WHOLE = {"multi-user": r"OpenRC [0-9.]+ is starting up.*login: *$"}
"""Markers that take more than one line, the whole console being one: OpenRC says nothing when it is through
its runlevels, and what starts it asks for a login only then."""

FIRMWARES = ("uefi", "bios", "secure-boot")
_OVMF = "/usr/share/OVMF"
_CODE = {"uefi": f"{_OVMF}/OVMF_CODE_4M.fd", "secure-boot": f"{_OVMF}/OVMF_CODE_4M.secboot.fd"}
_CONTROL = re.compile(
    rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*\x07?|[ -/]*[0-~])|[\x00-\x08\x0b-\x1f]"  # as in qemu.sh
)
_KERNEL = re.compile(r"Linux version (\S+)")
_SAID = {
    "failed": "it said what a machine that starts well does not",
    "restarted": "it started a second time",
    "stopped": "it restarted or turned itself off",
    "timeout": "it took too long",
    "silent": "the checks inside did not come to an end",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores, memory in MiB, what runs the instructions (`tcg` or `kvm`), firmware, and whether it has a TPM."""

    cpus: int = 2
    memory: int = 1024
    accel: str = "tcg"
    firmware: str = "uefi"
    tpm: bool = False


@dataclass(frozen=True, slots=True)
class Medium:
    """What it starts from, out of /in: a `disk` of a format, a `cdrom`, or the `network`.

    `sector` is the size of a disk's sectors. A network's `bootfile` is fetched by TFTP, and all that is in
    /in/www by TFTP from there and by HTTP from port 8080 of 10.0.2.2.
    """

    kind: str = "disk"
    format: str = "raw"
    sector: int = 512
    bootfile: str = ""


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
    def refused(self) -> bool:
        """Whether the firmware said no, and no kernel ran."""
        return self.outcome == "reached" and not self.kernel

    @property
    def why(self) -> str:
        """What went wrong, in words."""
        return _SAID.get(self.outcome, "no kernel started" if not self.kernel else "a kernel started")

    def last(self, lines: int = 25) -> str:
        """The end of the console, for a person to read."""
        return "\n".join([line for line in self.console.splitlines() if line.strip()][-lines:])


def driver() -> bytes:
    """The program that starts the machine and watches it."""
    return Path(__file__).with_name("qemu.sh").read_bytes()


def command(machine: Machine, medium: Medium, *, test: bool = False) -> tuple[str, ...]:
    """What is run in the sandbox: the driver, and the machine as QEMU's arguments.

    With `test`, the string /in/test (`inside.handed`) is handed to the machine for its initrd to run.
    """
    kvm = machine.accel == "kvm"
    return (
        *COMMAND,
        *("-machine", "q35,smm=on" if machine.firmware == "secure-boot" else "q35"),
        *("-accel", "kvm" if kvm else "tcg,thread=multi", "-cpu", "host" if kvm else "Nehalem"),
        *("-smp", str(machine.cpus), "-m", str(machine.memory)),
        *_firmware(machine.firmware),
        *_medium(medium),
        *(_TPM if machine.tpm else ()),
        *(("-smbios", "type=11,path=/in/test") if test else ()),
    )


def environment(*, expect: str, seconds: int, test: bool = False, tpm: bool = False) -> Mapping[str, str]:
    """What the driver reads; `expect` is a marker's name or an extended regular expression."""
    return {
        "EXPECT": EXPECT.get(expect, expect),
        "EXPECT_WHOLE": EXPECT_WHOLE.get(expect, ""),
        "FAILURE": FAILURE,
        "SECONDS_MAX": str(seconds),
        "GUEST": "yes" if test else "",
        "TPM": "yes" if tpm else "",
        "AGAIN": "",
    }


_TPM = (
    *("-chardev", "socket,id=tpm,path=/tmp/tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
    *("-device", "tpm-tis,tpmdev=tpm0"),
)


def _firmware(name: str) -> tuple[str, ...]:
    if name == "bios":
        return ()
    secure = ("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
    return (
        *(secure if name == "secure-boot" else ()),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_CODE[name]}"),
        *("-drive", "if=pflash,format=raw,unit=1,file=/tmp/vars"),
    )


def _medium(medium: Medium) -> tuple[str, ...]:
    if medium.kind == "network":
        net = f"user,id=net,tftp=/in/www,bootfile={medium.bootfile}"
        return ("-netdev", net, "-device", "virtio-net-pci,netdev=net,bootindex=0")
    if medium.kind == "cdrom":
        drive = "if=none,id=cd,media=cdrom,readonly=on,format=raw,file=/in/disk"
        controller = ("-device", "virtio-scsi-pci,id=scsi")
        return ("-nic", "none", *controller, "-drive", drive, "-device", "scsi-cd,drive=cd,bootindex=0")
    drive = f"if=none,id=disk,format={medium.format},snapshot=on,file=/in/disk"
    sectors = f",logical_block_size={medium.sector},physical_block_size={medium.sector}"
    return (
        *("-nic", "none", "-drive", drive),
        *("-device", f"virtio-blk-pci,drive=disk,bootindex=0{sectors if medium.sector != 512 else ''}"),
    )


def judge(verdict: bytes, serial: bytes) -> Boot:
    """What the driver's first two outputs say."""
    console = plain(serial)
    kernels = _KERNEL.findall(console)
    return Boot(verdict.decode().strip(), kernels[0] if kernels else "", console)


def plain(serial: bytes) -> str:
    """Text without what a terminal takes for commands."""
    return _CONTROL.sub(b"", serial).decode("utf-8", "replace")
