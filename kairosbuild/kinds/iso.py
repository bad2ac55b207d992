"""Kind `iso`: an image as a live system on a CD or a stick, for firmware old and new.

One ISO 9660 filesystem with the layers in their boot form. UEFI starts a unified kernel image out of an EFI
partition inside it, a BIOS starts GRUB, kernel and initrd; both ways from a CD and from a disk that the file was
copied to. xorriso writes it with nothing of the clock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts import grub
from kairosbuild.artifacts.checks import initrd_complaints
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, BootEntry, boot_entry, unified
from kairosbuild.artifacts.installer import installer
from kairosbuild.artifacts.partitions import up
from kairosbuild.artifacts.signing import Signing, SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import Stack, stack_of_image
from kairosbuild.boot import fat
from kairosbuild.boot.sparse import Sparse
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import flag, record, ref, text, texts

# The offset makes the volume reach over the appended partition: firmware looks for no boot image beyond its end.
_SCRIPT = """
label=$1 date=$2 uuid=$3
shift 3
set -- -as mkisofs -o /out/iso -V "$label" -J -joliet-long -r -iso-level 3 "$@" \\
    -append_partition 2 C12A7328-F81F-11D2-BA4B-00A0C93EC93B /in/efi.img -appended_part_as_gpt \\
    -partition_offset 16
set -- "$@" -e --interval:appended_partition_2:all:: -no-emul-boot /in/tree
export SOURCE_DATE_EPOCH
xorriso -no_rc -report_about WARNING "$@" \\
    --modification-date="$date" --set_all_file_dates "=$SOURCE_DATE_EPOCH" --gpt_disk_guid "$uuid"
"""
_BIOS = (
    *("--grub2-mbr", "/in/hybrid"),
    *("-c", "boot/boot.cat", "-b", "boot/grub/core.img", "-no-emul-boot", "-boot-load-size", "4"),
    *("-boot-info-table", "--grub2-boot-info", "-eltorito-alt-boot"),
)
_UEFI_ALONE = ("-c", "boot.cat")


@dataclass(frozen=True, slots=True)
class IsoSpec:
    """A live system."""

    image: str = ref(
        "The image it boots, or a node of kind boot: then `kbuild-node install` writes that to a disk.",
        accepts=("image", "boot"),
    )
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    bios: bool = flag("Machines with a BIOS start it too, by GRUB.", True)
    sign: SignSpec | None = record("Sign what firmware starts.", SignSpec, None)
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)
    entry: str = text("Its name.", "os", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Iso:
    """See the module."""

    name: ClassVar[str] = "iso"
    version: ClassVar[int] = 7
    Spec: ClassVar[type] = IsoSpec
    produces: ClassVar[str] = "iso"

    def tools(self, spec: IsoSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; the stub and what the initrd is made of; xorriso and GRUB."""
        return ("image", "boot", "media")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from initrd_complaints(declaration, declarations)

    def preflight(self, name: str, spec: IsoSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def lock(self, spec: IsoSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, assemble the UKI and GRUB, write the filesystem."""
        spec: IsoSpec = task.spec
        signs = signing(task)
        stack = stack_of_image(task)
        label = _label(stack)
        entry = boot_entry(task, stack, spec.cmdline, (f"kbuild.disk=LABEL={label}",))
        inputs = {"efi.img": _efi(task, entry, label, signs)}
        inputs |= {f"tree/layers/{name}": blob for name, blob in stack.forms.items()}
        install = installer(task, stack, spec.cmdline, signs, bios=spec.bios)
        inputs |= {f"tree/install/{path}": task.put_bytes(data) for path, data in install.items()}
        if spec.bios:
            inputs |= _for_bios(task, entry, label)
        made = _written(task, label, inputs)
        files = (File(f"{spec.entry}.iso", "iso", made),)
        return {"iso": made, "artifact": task.put_bytes(document("iso", files))}


def _label(stack: Stack) -> str:
    """A name that follows from what is in it: of two sticks in a machine, the right one is taken."""
    return "KBUILD_" + hashlib.sha256(" ".join(sorted(stack.forms)).encode()).hexdigest()[:12].upper()


def _efi(task: Task, entry: BootEntry, label: str, signs: Signing | None) -> Blob:
    """The EFI partition: a filesystem with the UKI where firmware looks for removable media."""
    files = {"EFI/BOOT/BOOTX64.EFI": unified(task, entry, signs)}
    length = up(fat.least(map(len, files.values())))
    disk = Sparse(length)
    disk.add_all(0, fat.build(fat.Volume(length, "ESP", int(label[-8:], 16), task.epoch), files))
    disk.write_raw(task.scratch / "efi.img")
    return task.put_file(task.scratch / "efi.img")


def _for_bios(task: Task, entry: BootEntry, label: str) -> Mapping[str, Blob]:
    """GRUB, its configuration, kernel and initrd."""
    marker = f"/boot/{label}"
    made = grub.core(task, "i386-pc-eltorito", marker)
    config = grub.configuration(entry, "/boot/linux", "/boot/initrd", task.spec.entry)
    return {
        "hybrid": made["hybrid"],
        "tree/boot/grub/core.img": made["core"],
        "tree/boot/grub/grub.cfg": task.put_bytes(config),
        "tree/boot/linux": entry.kernel,
        "tree/boot/initrd": entry.initrd,
        f"tree{marker}": task.put_bytes(b"this medium\n"),
    }


def _written(task: Task, label: str, inputs: Mapping[str, Blob]) -> Blob:
    at = time.strftime("%Y%m%d%H%M%S00", time.gmtime(task.epoch))
    identity = f"{label[-12:].lower():0>32}"
    bios = _BIOS if task.spec.bios else _UEFI_ALONE
    command = ("/bin/sh", "-euc", _SCRIPT, "iso", label, at, identity, *bios)
    action = Action(command, (task.tools("media"),), inputs, ("iso",), platform=task.platform)
    return task.execute(action).outputs["iso"]
