"""GRUB for machines with a BIOS: made by grub-mkimage of the tools tree `media`, put on disks and ISOs.

It knows one thing: where its configuration is. What it starts is written there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from kairosbuild.artifacts.entry import BootEntry
from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Outputs, Task

VERSION = 1
FOLDER = "usr/lib/grub/i386-pc"
_MODULES = (
    "biosdisk", "part_gpt", "part_msdos", "fat", "ext2", "iso9660", "search", "search_label", "search_fs_file",
    "normal", "configfile", "linux", "echo", "test", "true", "regexp", "loadenv", "serial", "terminal", "sleep",
    "reboot", "gzio", "boot", "minicmd", "all_video", "gfxterm",
)  # fmt: skip
_SCRIPT = """
grub-mkimage -d /{folder} -O "$1" -c early -p /boot/grub -o /out/core {modules}
cp /{folder}/boot.img /out/boot
cp /{folder}/boot_hybrid.img /out/hybrid
"""


def core(task: Task, form: str, marker: str) -> Mapping[str, Blob]:
    """`core`, `boot` and `hybrid` images: `form` is i386-pc or i386-pc-eltorito, `marker` a file its root has."""
    tools = task.tools("media")
    early = f"search --no-floppy --set=root --file {marker}\nset prefix=($root)/boot/grub\n"
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
    set arguments={_quoted(entry.cmdline)}
    linux {kernel} $arguments
    initrd {initrd}
}}
""".encode()


# -- disks: entries with counted tries, as systemd-boot has them ------------------------------------

_COUNTING = (
    _CONSOLE
    + """# Which entries there are, and which comes first, stands in entries.cfg: `set entries="os-2 os-1"`. An entry is a
# folder /boot/entries/NAME with linux, initrd and entry.cfg (`set arguments="..."`). How often one may still be
# tried stands in grubenv as a row of x: `left_NAME=xxx` (in NAME, _ for what is no letter, digit or _). An entry
# without such a row is good; one with an empty row (`left_NAME=.`) is passed over while there is another.
source $prefix/entries.cfg
load_env --file $prefix/grubenv
set chosen=
for name in $entries; do
    if [ -z "$chosen" ]; then
        source /boot/entries/$name/entry.cfg
        eval "set left=\\$left_$variable"
        if [ -z "$left" ]; then
            set chosen=$name
        elif regexp --set=1:fewer '^x(x*)$' "$left"; then
            set chosen=$name
            if [ -z "$fewer" ]; then set fewer=. ; fi
            eval "set left_$variable=$fewer"
            save_env --file $prefix/grubenv left_$variable
        fi
    fi
done
if [ -z "$chosen" ]; then
    for name in $entries; do
        if [ -z "$chosen" ]; then set chosen=$name; fi
    done
fi
source /boot/entries/$chosen/entry.cfg
echo "kbuild: starting $chosen"
linux /boot/entries/$chosen/linux $arguments
initrd /boot/entries/$chosen/initrd
boot
"""
)
_ENVIRONMENT = 1024  # bytes of a grubenv, no more and no less


def disk_files(entry: BootEntry, parts: tuple[bytes, bytes], name: str, tries: int) -> dict[str, bytes]:
    """What GRUB reads on the EFI partition, which is its root too; `parts` are kernel and initrd."""
    folder, variable = f"boot/entries/{name}", re.sub(r"[^A-Za-z0-9_]", "_", name)
    counted = f"left_{variable}={'x' * tries}\n" if tries else ""
    return {
        "boot/grub/grub.cfg": _COUNTING.encode(),
        "boot/grub/entries.cfg": f'set entries="{name}"\n'.encode(),
        "boot/grub/grubenv": f"# GRUB Environment Block\n{counted}".ljust(_ENVIRONMENT, "#").encode(),
        f"{folder}/entry.cfg": f"set variable={variable}\nset arguments={_quoted(entry.cmdline)}\n".encode(),
        f"{folder}/linux": parts[0],
        f"{folder}/initrd": parts[1],
    }


def _quoted(words: str) -> str:
    """Text as GRUB's shell takes it, whatever is in it."""
    return "'" + words.replace("'", "'\\''") + "'"


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
