"""What GRUB reads of a boot entry, and what it remembers: a file beside each unified kernel image, and an environment.

GRUB starts the very files that systemd-boot starts: it looks at a unified kernel image as a disk (`loopback`) and
takes kernel and initrd as runs of its sectors. It cannot rename a file, so the tries that it has counted stand in
its environment as a row of x, `used_os_2=xx`, beside those that the file's name has. This module is shipped with
the machine's program, which writes the same files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kairosbuild.core.errors import KbuildError

FOLDER = "boot/grub"
CONFIGURATION = f"{FOLDER}/grub.cfg"
ENVIRONMENT = f"{FOLDER}/grubenv"
ENTRIES = "boot/entries"
SECTOR = 512
_SIZE = 1024  # bytes of an environment, no more and no less
_HEAD = "# GRUB Environment Block\n"

Place = tuple[int, int]
"""Size and offset of a section in a file."""


def variable(label: str) -> str:
    """The name under which GRUB counts the tries of an entry."""
    return "used_" + re.sub(r"[^A-Za-z0-9_]", "_", label)


def described(label: str, linux: Place, initrd: Place, cmdline: str) -> bytes:
    """The file that tells GRUB where in a kernel image kernel and initrd are, and the arguments. Raises `bad-stub`."""
    return (
        f"set used={variable(label)}\n"
        f"set linux={_sectors(*linux)}\n"
        f"set initrd={_sectors(*initrd)}\n"
        f"set arguments={quoted(cmdline)}\n"
    ).encode()


def environment(values: Mapping[str, str]) -> bytes:
    """An environment with these variables."""
    lines = "".join(f"{name}={value}\n" for name, value in sorted(values.items()))
    return f"{_HEAD}{lines}".ljust(_SIZE, "#").encode()


def variables(environment: bytes) -> dict[str, str]:
    """The variables of an environment; none of one that cannot be read."""
    text = environment.decode("ascii", "replace")
    if not text.startswith(_HEAD):
        return {}
    lines = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, mark, value in lines if mark}


def quoted(words: str) -> str:
    """Text as GRUB's shell takes it, whatever is in it."""
    return "'" + words.replace("'", "'\\''") + "'"


def _sectors(size: int, offset: int) -> str:
    if offset % SECTOR:
        raise KbuildError("a section of the kernel image does not begin at a sector", reason="bad-stub")
    return f"{offset // SECTOR}+{-(-size // SECTOR)}"
