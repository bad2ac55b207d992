"""Kind `iso`: an image as a live system on a CD or a stick, for firmware old and new.

One ISO 9660 filesystem with the layers in their boot form. UEFI starts a unified kernel image out of an EFI
partition inside it, a BIOS starts GRUB, kernel and initrd; both ways from a CD and from a disk that the file was
copied to. Its bytes are computed; it is then written once, front to back.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts import grub
from kairosbuild.artifacts.checks import complaints, foreseen
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, BootEntry, boot_entry, unified
from kairosbuild.artifacts.installer import installer
from kairosbuild.artifacts.partitions import up
from kairosbuild.artifacts.signing import SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import Stack, stack_of_image
from kairosbuild.boot import fat, gpt, iso9660
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.node import UNLOCKED, Known, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import flag, record, ref, text, texts

_IDENTITY = uuid.UUID("0f1f3b86-2d0a-4f0c-9d49-6b6275697365")  # names that uuid5 derives from
_CORE = "boot/grub/core.img"


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
    version: ClassVar[int] = 10
    Spec: ClassVar[type] = IsoSpec
    produces: ClassVar[str] = "iso"

    def tools(self, spec: IsoSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; the stub and what the initrd is made of; GRUB."""
        return ("image", "boot", "media") if spec.bios else ("image", "boot")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from complaints(declaration, declarations)

    def preflight(self, name: str, spec: IsoSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules that would not load under the Secure Boot it is signed for."""
        yield from foreseen(declaration, declarations, known)

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
        files: dict[str, bytes | Part] = {
            f"layers/{name}": _part(task, blob) for name, blob in stack.forms.items()
        }
        install = installer(task, stack, spec.cmdline, signs, bios=spec.bios)
        files |= {f"install/{path}": data for path, data in install.items()}
        if spec.bios:
            files |= _for_bios(task, entry)
        disk = _laid_out(task, label, files, {"EFI/BOOT/BOOTX64.EFI": unified(task, entry, signs)})
        disk.write_raw(task.scratch / "iso")
        made = task.put_file(task.scratch / "iso")
        listed = (File(f"{spec.entry}.iso", "iso", made),)
        return {"iso": made, "artifact": task.put_bytes(document("iso", listed))}


def _label(stack: Stack) -> str:
    """A name that follows from what is in it: of two sticks in a machine, the right one is taken."""
    return "KBUILD_" + hashlib.sha256(" ".join(sorted(stack.forms)).encode()).hexdigest()[:12].upper()


def _for_bios(task: Task, entry: BootEntry) -> dict[str, bytes | Part]:
    """GRUB, its configuration, kernel and initrd."""
    return {
        _CORE: task.path(grub.for_cds(task)["core"]).read_bytes(),
        "boot/grub/grub.cfg": grub.configuration(entry, "/boot/linux", "/boot/initrd", task.spec.entry),
        "boot/linux": _part(task, entry.kernel),
        "boot/initrd": _part(task, entry.initrd),
        grub.ON_CDS: b"an ISO that starts from here\n",
    }


def _laid_out(task: Task, label: str, files: dict[str, bytes | Part], started: Mapping[str, bytes]) -> Sparse:
    """The filesystem, behind it the EFI partition, in front of it what starts a BIOS from a disk.

    The volume is said to reach over all of it: firmware looks for no boot image beyond its end.
    """
    tree = iso9660.Tree({path: _size(content) for path, content in files.items()})
    start, length = up(tree.end), up(fat.least(map(len, started.values())))
    disk = Sparse(start + length + gpt.ALIGN)
    disk.add_all(0, gpt.build(disk.size, _identity("disk", label), _partitions(label, start, length)))
    boots = [iso9660.Boot(iso9660.UEFI, start)]
    if task.spec.bios:
        boots.insert(0, iso9660.Boot(iso9660.BIOS, tree.at[_CORE], grub.ELTORITO_SECTORS))
        _place_grub(task, disk, files, tree.at[_CORE])
    disk.add_all(0, tree.pieces(iso9660.Volume(label, task.epoch, disk.size), boots))
    for path, content in files.items():
        disk.add(tree.at[path], content)
    volume = fat.Volume(length, "ESP", int(label[-8:], 16), task.epoch, start // gpt.SECTOR)
    disk.add_all(start, fat.build(volume, started))
    return disk


def _partitions(label: str, start: int, length: int) -> tuple[gpt.Partition, ...]:
    """The EFI partition, which is all that firmware asks for; before it a name for what is no free space."""
    taken = iso9660.DESCRIPTORS * iso9660.BLOCK
    return (
        gpt.Partition(gpt.LINUX, _identity("partition 0", label), "iso9660", taken, start - taken),
        gpt.Partition(gpt.ESP, _identity("partition 1", label), "esp", start, length),
    )


def _place_grub(task: Task, disk: Sparse, files: dict[str, bytes | Part], at: int) -> None:
    """GRUB told where it lies, by the firmware of a CD and by the first sector of a disk."""
    core = files[_CORE]
    assert isinstance(core, bytes), "it was read to be changed"
    files[_CORE] = grub.eltorito(core, at // iso9660.BLOCK)
    disk.replace(0, grub.hybrid_sector(task.path(grub.for_cds(task)["hybrid"]).read_bytes(), at))


def _identity(what: str, label: str) -> uuid.UUID:
    return uuid.uuid5(_IDENTITY, f"{what} {label}")


def _part(task: Task, blob: Blob) -> Part:
    return Part(task.path(blob), 0, blob.size)


def _size(content: bytes | Part) -> int:
    return content.size if isinstance(content, Part) else len(content)
