"""Kind `disk`: an image as a bootable disk whose root is the stack of the image's own layers.

GPT with an EFI system partition (systemd-boot and a unified kernel image) and a `layers` filesystem, which
holds each layer's boot form under its root hash. Only mkfs.erofs, for a layer that is new, runs in the
sandbox; all else is computed here, so that a changed file costs little more than writing the disk.
docs/boot.md says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts import checks, grub, writing
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import (
    CONSOLE,
    ENCRYPT,
    IN_RECOVERY,
    RECOVERY,
    BootEntry,
    boot_entry,
    given_entry,
    loader,
    unified,
)
from kairosbuild.artifacts.merged import single
from kairosbuild.artifacts.partitions import (
    MIB,
    SECTORS,
    Bytes,
    Content,
    Esp,
    Files,
    PartitionSpec,
    Table,
    complaints,
)
from kairosbuild.artifacts.signing import Signing, SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import Stack, stack_of_image
from kairosbuild.boot import gpt
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.graph.node import UNLOCKED, Known, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, integer, record, records, ref, size, text, texts

_HEADROOM = 64 * MIB
_LOADER = b"timeout 0\nconsole-mode keep\neditor no\n"
_ENCRYPTED = (
    64 * MIB
)  # of a persistent partition: LUKS2's header is 16 of them, and what a first start writes
_VERSIONS = 3  # boot entries an EFI partition has to have room for: this, the next, recovery
_TABLE = (PartitionSpec(type="esp"), PartitionSpec(type="layers"))
_BIOS_TABLE = (PartitionSpec(type="bios-boot"), *_TABLE)


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk that a machine starts from."""

    image: str = ref(
        "The image it boots, or a node of kind boot, whose boot entry is then taken as it is.",
        accepts=("image", "boot"),
    )
    recovery: str = ref(
        "The image of the recovery partition, where one is declared; by default the same image.",
        "",
        accepts=("image",),
    )
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    format: str = choice(
        "How the disk is written: for QEMU, VMware, Hyper-V and Azure (`vhd`, fixed), Google's cloud (`gce`).",
        writing.FORMATS,
        "raw",
    )
    partitions: tuple[PartitionSpec, ...] = records(
        "The partition table, in the order on the disk. By default an EFI partition of 128 MiB, and layers.",
        PartitionSpec,
        (),
    )
    firmware: str = choice(
        "What starts it: `uefi` (systemd-boot), `bios` (GRUB), or `both`; the boot entries are the same. GRUB wants a "
        "partition `bios-boot`.",
        ("uefi", "bios", "both"),
        "uefi",
    )
    root: str = choice(
        "What the machine mounts: the `layers`, or a `single` filesystem with all that is in them.",
        ("layers", "single"),
        "layers",
    )
    sector_size: str = choice("Bytes of the disk's sectors.", SECTORS, "512")
    sign: SignSpec | None = record("Sign what firmware starts.", SignSpec, None)
    cmdline: tuple[str, ...] = texts(
        "Kernel arguments, after those that find the root; a node of kind boot has its own.", CONSOLE
    )
    entry: str = text(
        "The boot entry's name, before its number and tries: `os-1+3`.",
        "os",
        pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    )
    tries: int = integer(
        "How often it may fail to start before the next entry has its turn; 0 is for ever.", 3, most=99
    )
    size: int = size(
        "The whole disk. By default as large as it needs, twice the layers with 64 MiB more included, "
        "so that a next version fits beside this one.",
        0,
    )


class Disk:
    """See the module."""

    name: ClassVar[str] = "disk"
    version: ClassVar[int] = 13
    Spec: ClassVar[type] = DiskSpec
    produces: ClassVar[str] = "disk"

    def tools(self, spec: DiskSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; boot loader, stub and what the initrd is made of; GRUB."""
        return ("image", "boot") if spec.firmware == "uefi" else ("image", "boot", "media")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from checks.complaints(declaration, declarations)
        spec = declaration.spec
        yield from complaints(spec)
        if spec["firmware"] != "uefi" and spec["sector_size"] != "512":
            yield "firmware", "a BIOS knows sectors of 512 bytes only", "firmware: uefi"

    def preflight(self, name: str, spec: DiskSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules that would not load under the Secure Boot it is signed for."""
        yield from checks.foreseen(declaration, declarations, known)

    def lock(self, spec: DiskSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, assemble the UKI, lay out the disk, write it."""
        spec: DiskSpec = task.spec
        signs = signing(task)
        stack = stack_of_image(task)
        if spec.root == "single":
            stack = single(task, stack)
        entry = _entry(task, stack)
        kernel = unified(task, entry, signs)
        table = _table(task, stack, entry, kernel, signs)
        disk, placed = table.lay_out()
        if spec.firmware != "uefi":
            _add_grub(task, disk, placed)
        path = task.scratch / "disk"
        made = task.put_file(writing.written(disk, spec.format, path, table.identity("file"), task.epoch))
        files = (File(f"{spec.entry}.{writing.suffix(spec.format)}", f"disk.{spec.format}", made),)
        return {
            "disk": made,
            "artifact": task.put_bytes(document("disk", files, {"sector-size": spec.sector_size})),
            "uki": task.put_bytes(kernel),
        }


def _entry(task: Task, stack: Stack) -> BootEntry:
    """The boot entry: that of the boot node the disk is made from, else one of its own."""
    if task.spec.root == "layers" and (given := given_entry(task)):
        return given
    return boot_entry(task, stack, task.spec.cmdline)


def _recovery(task: Task, stack: Stack, signs: Signing | None) -> tuple[bytes, Stack] | None:
    """Kernel image and stack of the recovery partition; None where there is no such partition."""
    if not any(one.type == "recovery" for one in task.spec.partitions):
        return None
    found = stack_of_image(task, "recovery") if task.inputs.get("recovery") else stack
    entry = boot_entry(task, found, task.spec.cmdline, IN_RECOVERY, order=RECOVERY)
    return unified(task, entry, signs), found


def _parts(task: Task, stack: Stack) -> dict[str, Part]:
    return {name: Part(task.path(blob), 0, blob.size) for name, blob in stack.forms.items()}


def _table(task: Task, stack: Stack, entry: BootEntry, kernel: bytes, signs: Signing | None) -> Table:
    """What is on the disk, not yet placed."""
    spec: DiskSpec = task.spec
    forms, recovery = _parts(task, stack), _recovery(task, stack, signs)
    contents: dict[str, Content] = {"layers": Files("kbuild-layers", forms, 2, _HEADROOM)}
    if recovery:
        contents["recovery"] = Files("kbuild-recovery", _parts(task, recovery[1]))
    files = _esp_files(task, kernel, recovery[0] if recovery else b"", signs)
    contents["esp"] = Esp(files, (_VERSIONS - (2 if recovery else 1)) * len(kernel))
    if ENCRYPT in entry.cmdline:
        _refuse_nowhere(task)
        contents["persistent"] = Files("kbuild-state", {}, floor=_ENCRYPTED)
    if spec.firmware != "uefi":
        contents["bios-boot"] = Bytes(b"", grub.for_disks(task)["core"].size)
    return Table(
        task.name,
        spec.partitions or (_TABLE if spec.firmware == "uefi" else _BIOS_TABLE),
        contents,
        " ".join(sorted(forms)),
        spec.size,
        int(spec.sector_size),
        task.epoch,
        writing.WHOLE.get(spec.format, MIB),
    )


def _refuse_nowhere(task: Task) -> None:
    """What is encrypted is found by its partition's name. Raises `partition-missing`."""
    if ("persistent", "") not in [(one.type, one.name) for one in task.spec.partitions]:
        raise InputError(
            f"{task.name}: {task.spec.image!r} encrypts what is kept, and there is no partition named persistent",
            reason="partition-missing",
            hint="add `{type: persistent}` to partitions, under no other name",
        )


def _esp_files(task: Task, kernel: bytes, recovery: bytes, signs: Signing | None) -> dict[str, bytes]:
    """The unified kernel images, and systemd-boot, GRUB's files, or both."""
    spec: DiskSpec = task.spec
    counter = f"+{spec.tries}" if spec.tries else ""
    files = {f"EFI/Linux/{spec.entry}-1{counter}.efi": kernel}
    if recovery:
        files["EFI/Linux/recovery.efi"] = recovery
    if spec.firmware != "bios":
        boot = task.path(loader(task)["loader"]).read_bytes()
        enrolment = b"secure-boot-enroll %s\n" % signs.spec.enrolment.encode() if signs else b""
        files |= {
            "EFI/BOOT/BOOTX64.EFI": signs.pe(boot) if signs else boot,
            "loader/loader.conf": _LOADER + enrolment,
            **(signs.enrolled if signs else {}),
        }
    if spec.firmware != "uefi":
        files |= grub.disk_files({f"{spec.entry}-1": kernel, **({"recovery": recovery} if recovery else {})})
    return files


def _add_grub(task: Task, disk: Sparse, placed: Sequence[gpt.Partition]) -> None:
    """GRUB's first sector in front of the partition table, the rest of it in its partition."""
    at = next(one.start for one in placed if one.type == gpt.BIOS_BOOT) // 512
    sector, core = grub.placed(task, at)
    disk.replace(0, sector)
    disk.add(at * 512, core)
