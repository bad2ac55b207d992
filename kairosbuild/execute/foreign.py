"""Programs of another architecture: whether this machine runs them, and what to say when it does not.

Tools trees are of this machine's own architecture whatever the recipe builds for. What a package manager runs
in the tree that it installs into is not: that takes an emulator which the kernel starts by itself (binfmt_misc).
"""

from __future__ import annotations

import os
from pathlib import Path

from kairosbuild.core.errors import HostError

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_EMULATORS = {"linux/arm64": "qemu-aarch64", "linux/amd64": "qemu-x86_64"}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
SYMPTOM = b"Exec format error"

HOST = f"linux/{_MACHINES.get(os.uname().machine, os.uname().machine)}"
"""The platform of this machine."""


def runs(platform: str, binfmt: Path = BINFMT) -> bool:
    """Whether programs of this platform run here, in any root: natively, or by an emulator held open (flag F)."""
    if platform == HOST:
        return True
    try:
        lines = (binfmt / _EMULATORS[platform]).read_text().splitlines()
    except (KeyError, OSError):
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return "enabled" in lines and "F" in flags


def refused(name: str, platform: str) -> HostError:
    """The error for a step that this machine cannot run."""
    return HostError(
        f"{name} runs programs for {platform}, and this machine ({HOST}) cannot",
        reason="foreign-platform",
        hint="install the package qemu-user-static (with binfmt-support or systemd-binfmt), or build on such a machine",
    )
