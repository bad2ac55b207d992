"""GRUB for machines with a BIOS: made by grub-mkimage of the tools tree `media`, put on disks and ISOs.

It knows one thing: where its configuration is. What it starts is written there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from kairosbuild.artifacts.entry import BootEntry
from kairosbuild.boot import grub, iso9660, uki
from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Outputs, Task

VERSION = 2
FOLDER = "usr/lib/grub/i386-pc"
_MODULES = (
    "biosdisk", "part_gpt", "part_msdos", "fat", "ext2", "iso9660", "search", "search_label", "search_fs_file",
    "normal", "configfile", "linux", "echo", "test", "true", "regexp", "loadenv", "serial", "terminal", "sleep",
    "reboot", "gzio", "boot", "minicmd", "all_video", "gfxterm", "eval", "loopback",
)  # fmt: skip
_MARKER = f"{grub.ENTRIES}/kbuild"  # no other medium has it
_SCRIPT = """
grub-mkimage -d /{folder} -O "$1" -c early -p /boot/grub -o /out/core {modules}
cp /{folder}/boot.img /out/boot
cp /{folder}/boot_hybrid.img /out/hybrid
"""


def core(task: Task, form: str, marker: str) -> Mapping[str, Blob]:
    """`core`, `boot` and `hybrid` images: `form` is i386-pc or i386-pc-eltorito, `marker` a file its root has."""
    tools = task.tools("media")
    early = f"search --no-floppy --set=root --hint=$root, --file {marker}\nset prefix=($root)/boot/grub\n"
    script = _SCRIPT.format(folder=FOLDER, modules=" ".join(_MODULES))

    def make() -> Outputs:
        action = Action(
            ("/bin/sh", "-euc", script, "grub", form),
            (tools,),
            {"early": task.put_bytes(early.encode())},
            ("core", "boot", "hybrid"),
            platform=task.platform,
        )
        return task.execute(action).outputs

    preimage = {"tools": tools.digest, "form": form, "early": early, "script": script}
    return task.derive("grub", VERSION, preimage, make)


_CONSOLE = """serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
"""


def configuration(entry: BootEntry, kernel: str, initrd: str, name: str) -> bytes:
    """A configuration that starts this entry at once, from two files of the root."""
    return f"""{_CONSOLE}set timeout=0
set default=0
menuentry "{name}" {{
    set arguments={grub.quoted(entry.cmdline)}
    linux {kernel} $arguments
    initrd {initrd}
}}
""".encode()


# -- disks: entries with counted tries, as systemd-boot has them ------------------------------------


def for_disks(task: Task) -> Mapping[str, Blob]:
    """The images for disks, whose EFI partition is GRUB's root."""
    return core(task, "i386-pc", f"/{_MARKER}")


def placed(task: Task, at: int) -> tuple[bytes, bytes]:
    """The boot sector of a disk, and GRUB's core image to be put at this sector."""
    made = {name: task.path(blob).read_bytes() for name, blob in for_disks(task).items()}
    return boot_sector(made["boot"], at), core_at(made["core"], at)


def disk_files(kernels: Mapping[str, bytes]) -> dict[str, bytes]:
    """What GRUB reads on the EFI partition, which is its root too, to start these kernel images, by label."""
    return {
        grub.CONFIGURATION: counting(),
        grub.ENVIRONMENT: grub.environment({}),
        _MARKER: b"the entries of this disk\n",
        **{f"{grub.ENTRIES}/{label}.cfg": _described(label, kernel) for label, kernel in kernels.items()},
    }


def counting() -> bytes:
    """GRUB's configuration on a disk: it looks for entries, counts their tries and starts one."""
    return Path(__file__).with_name("grub.cfg").read_bytes()


def _described(label: str, kernel: bytes) -> bytes:
    places = {one.name: (min(one.size, one.stored), one.offset) for one in uki.sections(kernel)}
    cmdline = uki.section(kernel, ".cmdline").decode()
    return grub.described(label, places[".linux"], places[".initrd"], cmdline)


def boot_sector(image: bytes, at: int) -> bytes:
    """GRUB's boot.img, made to load what lies at this sector; its first 440 bytes."""
    made = bytearray(image[:440])
    struct.pack_into("<Q", made, 0x5C, at)
    made[0x66:0x68] = b"\x90\x90"  # take the drive the BIOS says, without a look at whether it is a floppy
    return bytes(made)


def core_at(image: bytes, at: int) -> bytes:
    """GRUB's core image, made to load its own rest, which follows its first sector."""
    made = bytearray(image)
    struct.pack_into("<Q", made, 512 - 12, at + 1)
    return bytes(made)


# -- CDs: the same image for the firmware's El Torito, and for a stick that the ISO was copied to -----

ELTORITO_SECTORS = 4
"""How many sectors of the core image a BIOS loads from a CD; they load the rest."""

ON_CDS = "boot/kbuild"
"""A file that no other medium has. GRUB looks at the medium it was started from first."""

_BOOT_INFO = struct.Struct("<IIII40x")  # the volume's descriptor, the image's block, length and sum


def for_cds(task: Task) -> Mapping[str, Blob]:
    """The images for ISOs, made once for all of them."""
    return core(task, "i386-pc-eltorito", f"/{ON_CDS}")


def eltorito(image: bytes, block: int) -> bytes:
    """GRUB's core image for a CD, made to find its rest, with the table that such images have at byte 8."""
    made = bytearray(image)
    struct.pack_into("<Q", made, 2548, block * 4 + 5)
    words = bytes(made[64:]) + bytes(-len(made) % 4)
    total = sum(word for (word,) in struct.iter_unpack("<I", words)) & 0xFFFFFFFF
    _BOOT_INFO.pack_into(made, 8, iso9660.DESCRIPTORS, block, len(image), total)
    return bytes(made)


def hybrid_sector(image: bytes, at: int) -> bytes:
    """GRUB's boot_hybrid.img, made to load the core image of a CD that begins at this byte; its first 440 bytes."""
    made = bytearray(image[:440])
    struct.pack_into("<Q", made, 0x1B0, at // 512 + 4)
    return bytes(made)
