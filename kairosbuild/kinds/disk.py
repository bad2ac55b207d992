"""Kind `disk`: an image as a bootable disk whose root is the stack of the image's own layers.

GPT with an EFI system partition (systemd-boot and a unified kernel image) and a `layers` filesystem, which
holds each layer's boot form under its root hash. Only mkfs.erofs, for a layer that is new, runs in the
sandbox; all else is computed here, so that a changed file costs little more than writing the disk.
docs/boot.md says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.artifacts import writing
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, boot_entry, loader, unified
from kairosbuild.artifacts.partitions import MIB, SECTORS, Bytes, Content, Esp, Files, PartitionSpec, Table
from kairosbuild.artifacts.stack import Stack, stack_of_image
from kairosbuild.boot.sparse import Part
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.recipe.fields import choice, integer, records, ref, size, text, texts

_HEADROOM = 64 * MIB
_LOADER = b"timeout 0\nconsole-mode keep\neditor no\n"
_VERSIONS = 3  # boot entries an EFI partition has to have room for: this, the next, recovery
_TABLE = (PartitionSpec(type="esp"), PartitionSpec(type="layers"))


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk for a machine with UEFI."""

    image: str = ref("The image it boots.", accepts=("image",))
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    format: str = choice("How the disk is written.", writing.FORMATS, "raw")
    partitions: tuple[PartitionSpec, ...] = records(
        "The partition table, in the order on the disk. By default an EFI partition of 128 MiB, and layers.",
        PartitionSpec,
        (),
    )
    sector_size: str = choice("Bytes of the disk's sectors.", SECTORS, "512")
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)
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
    version: ClassVar[int] = 4
    Spec: ClassVar[type] = DiskSpec
    produces: ClassVar[str] = "disk"

    def tools(self, spec: DiskSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; boot loader, stub and what the initrd is made of."""
        return ("image", "boot")

    def lock(self, spec: DiskSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, assemble the UKI, lay out the disk, write it."""
        spec: DiskSpec = task.spec
        stack = stack_of_image(task)
        kernel = unified(task, boot_entry(task, stack, spec.cmdline))
        disk, _ = _table(task, stack, kernel).lay_out()
        made = task.put_file(writing.written(disk, spec.format, task.scratch / "disk"))
        files = (File(f"{spec.entry}.{writing.suffix(spec.format)}", f"disk.{spec.format}", made),)
        return {
            "disk": made,
            "artifact": task.put_bytes(document("disk", files)),
            "uki": task.put_bytes(kernel),
        }


def _table(task: Task, stack: Stack, kernel: bytes) -> Table:
    """What is on the disk, not yet placed."""
    spec: DiskSpec = task.spec
    forms = {name: Part(task.path(blob), 0, blob.size) for name, blob in stack.forms.items()}
    contents: dict[str, Content] = {
        "esp": Esp(_esp_files(task, kernel), (_VERSIONS - 1) * len(kernel)),
        "layers": Files("kbuild-layers", forms, 2, _HEADROOM),
    }
    if any(one.type == "bios-boot" for one in spec.partitions):
        contents["bios-boot"] = Bytes()
    return Table(
        task.name,
        spec.partitions or _TABLE,
        contents,
        " ".join(sorted(forms)),
        spec.size,
        int(spec.sector_size),
        task.epoch,
    )


def _esp_files(task: Task, kernel: bytes) -> dict[str, bytes]:
    spec: DiskSpec = task.spec
    counter = f"+{spec.tries}" if spec.tries else ""
    return {
        "EFI/BOOT/BOOTX64.EFI": task.path(loader(task)["loader"]).read_bytes(),
        f"EFI/Linux/{spec.entry}-1{counter}.efi": kernel,
        "loader/loader.conf": _LOADER,
    }
