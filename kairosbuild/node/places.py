"""The machine's own changes, given up: what is to be wiped is written down, and the next start does it.

The initrd wipes before anything uses the places, and takes the note away last, so that a power cut starts it over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from kairosbuild.node import durable, machine
from kairosbuild.node.grub import Grub
from kairosbuild.node.problem import Problem, nearest

PLACES = ("etc", "var", "home", "root", "opt", "srv")
PERSISTENT = machine.RUN / "persistent"
NOTE = "reset"
_ONE_SHOT = Path("/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
_ATTRIBUTES = b"\x07\0\0\0"  # kept, and seen by firmware and system


def reset(keep: Iterable[str], persistent: Path = PERSISTENT) -> list[str]:
    """Note that every place but these is wiped at the next start. Raises Problem `nothing-kept`, `bad-place`."""
    kept = set(keep)
    for place in kept - set(PLACES):
        raise Problem(f"{place!r} is no place", reason="bad-place", hint=nearest(place, PLACES))
    if not persistent.is_dir():
        raise Problem(
            "this machine keeps nothing, so there is nothing to reset",
            reason="nothing-kept",
            hint="each start is as the image has it",
        )
    wiped = [place for place in PLACES if place not in kept]
    durable.write(persistent / NOTE, "".join(f"{place}\n" for place in wiped).encode())
    return wiped


def start_once(label: str, grub: Grub, variable: Path = _ONE_SHOT) -> None:
    """Have the boot loader start this entry the next time, and only then. Raises Problem `no-efi`."""
    if variable.parent.is_dir() and os.listdir(variable.parent):  # noqa: PTH208
        variable.write_bytes(_ATTRIBUTES + f"{label}.efi\0".encode("utf-16-le"))
    elif grub.there:
        grub.start_once(label)
    else:
        raise Problem(
            "the firmware's variables cannot be reached",
            reason="no-efi",
            hint="choose the entry in the boot loader's menu",
        )
