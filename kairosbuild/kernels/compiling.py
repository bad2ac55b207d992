"""Compiling modules: the command, and what a compilation depends on. Nothing here runs it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kairosbuild.core.digest import of_bytes
from kairosbuild.kernels.abi import Abi
from kairosbuild.kernels.module import Module, read

VERSION = 1
"""Raise it when the same sources would come out otherwise."""

OUTPUT = "modules.tar"
SCRIPT = "modules.sh"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def script() -> bytes:
    """What runs in the sandbox."""
    return Path(__file__).with_name(SCRIPT).read_bytes()


def from_sources(release: str, folder: str, make: Mapping[str, str]) -> tuple[str, ...]:
    """The command for what is in /in/source."""
    variables = [f"{name}={value}" for name, value in sorted(make.items())]
    return ("/bin/sh", "-eu", f"/in/{SCRIPT}", "sources", release, folder, *variables)


def from_dkms(release: str, platform: str) -> tuple[str, ...]:
    """The command for the packages of sources that stand in the root."""
    machine = MACHINES[platform.split("/")[1]]
    return ("/bin/sh", "-eu", f"/in/{SCRIPT}", "dkms", release, machine)


def depends_on(
    abi: Abi, symbols: str, release: str, job: Mapping[str, Any], toolchain: Sequence[str]
) -> dict[str, Any]:
    """The preimage of a compilation: with symbol versions neither the release nor the headers are in it."""
    return {
        "abi": abi.json(),
        "symbols": symbols,
        "release": "" if abi.versioned else release,
        "job": dict(job),
        "toolchain": list(toolchain),
        "script": of_bytes(script()).digest,
    }


def modules_of(tar: bytes) -> list[Module]:
    """The modules that the script packed, by name."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:  # ours: only read from, never extracted
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                found.append(read(member.name, content.read()))
    return sorted(found, key=lambda one: one.name)
