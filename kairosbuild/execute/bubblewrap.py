"""Bubblewrap: finding one, and the command line that makes the sandbox of an action.

<https://github.com/containers/bubblewrap>, `bwrap(1)`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from kairosbuild.core.errors import HostError
from kairosbuild.execute.jail import MADE_HERE, PROC_COVERED
from kairosbuild.execute.staging import HOSTNAME
from kairosbuild.graph.action import Action

LEAST = (0, 5)  # --clearenv and --perms came with it


@cache
def find_bubblewrap(tree: Path | None = None) -> tuple[str, ...]:
    """The words that start bubblewrap: this machine's when it is recent, else the one in a tools tree.

    The one in a tree runs through that tree's own dynamic loader, so nothing of the host is needed.
    Raises HostError `no-bubblewrap`.
    """
    host = shutil.which("bwrap")
    if host and _version((host,)) >= LEAST:
        return (host,)
    if tree is not None:
        return _in_tree(tree)
    raise HostError(
        f"there is no bubblewrap {LEAST[0]}.{LEAST[1]} or later on this machine",
        reason="no-bubblewrap",
        hint="apt install bubblewrap",
    )


def _in_tree(tree: Path) -> tuple[str, ...]:
    loaders = sorted(tree.glob("usr/lib*/ld-linux*.so.*")) + sorted(tree.glob("usr/lib/*/ld-linux*.so.*"))
    program = tree / "usr/bin/bwrap"
    if not loaders or not program.exists():
        raise HostError(f"{tree} holds no bubblewrap with its loader", reason="no-bubblewrap")
    folders = [*sorted(tree.glob("usr/lib/*-linux-gnu*")), tree / "usr/lib"]
    return (str(loaders[0]), "--library-path", ":".join(map(str, folders)), str(program))


def _version(words: tuple[str, ...]) -> tuple[int, ...]:
    said = subprocess.run((*words, "--version"), capture_output=True, text=True, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0,)


def arguments(
    bwrap: tuple[str, ...], action: Action, *, root: Path, folder: Path, env: dict[str, str]
) -> list[str]:
    """The whole command line for an action over a root folder, staged in `folder`."""
    words = [
        *bwrap,
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--hostname",
        HOSTNAME,
        "--uid",
        "0",
        "--gid",
        "0",
        "--cap-drop",
        "ALL",
        "--clearenv",
        *_root(root),
        "--proc",
        "/proc",
        *_cover_proc(),
        "--dev",
        "/dev",
        "--perms",
        "1777",
        "--tmpfs",
        "/tmp",  # noqa: S108
        "--ro-bind",
        f"{folder}/in",
        "/in",
        "--bind",
        f"{folder}/out",
        "/out",
    ]
    for device in action.devices:
        if Path(device).exists():
            words += ["--dev-bind", device, device]
    words += ["--remount-ro", "/"]
    for name, value in env.items():
        words += ["--setenv", name, value]
    return [*words, "--chdir", action.cwd, "--", *action.command]


def _cover_proc() -> list[str]:
    """As root, bubblewrap up to 0.8 at least leaves what concerns the whole machine writable."""
    places = [f"/proc/{name}" for name in PROC_COVERED if Path("/proc", name).exists()]
    return [word for place in places for word in ("--ro-bind", place, place)]


def _root(root: Path) -> list[str]:
    """The top of a tree, beneath bubblewrap's own tmpfs, so that no mount point is made in the tree."""
    words: list[str] = []
    with os.scandir(root) as found:
        for item in sorted(found, key=lambda item: item.name):
            if item.name in MADE_HERE:
                continue
            if item.is_symlink():
                words += ["--symlink", str(Path(item.path).readlink()), f"/{item.name}"]
            else:
                words += ["--ro-bind", item.path, f"/{item.name}"]
    return words
