"""One initrd for every distribution: busybox, dmsetup, modules a kernel needs to reach its layers, a script.

Which of it depends on the kernel is the modules; the rest comes from the tools tree `boot`.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kairosbuild.boot import cpio, elf, modules
from kairosbuild.boot.files import Files
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import InputError, KbuildError, nearest

VERSION = 2
"""Raise it when the same inputs would make another initrd."""

APPLETS = (
    "[", "cat", "chmod", "chown", "cmp", "cp", "echo", "findfs", "grep", "ip", "ln", "losetup", "ls", "mkdir",
    "modprobe", "mount", "mv", "od", "printf", "reboot", "rm", "sh", "sleep", "sort", "stat", "switch_root", "sync", "tail",
    "tr", "udhcpc", "umount", "wget", "xargs",
)  # fmt: skip
"""What the script calls out of busybox."""

COMPRESS = ("zstd", "--quiet", "--single-thread", "-9", "--no-check", "-o", "/out/initrd", "/in/initrd")
"""What packs the archive, run in the tools tree `image`: no zstd of this machine's has a say in it."""

PROGRAMS = {
    "bin/busybox": ("usr/bin/busybox", "bin/busybox"),
    "sbin/dmsetup": ("usr/sbin/dmsetup", "sbin/dmsetup"),
}
ENCRYPTION = {
    "bin/cryptsetup": ("usr/sbin/cryptsetup",),
    "bin/mke2fs": ("usr/sbin/mke2fs",),
    "bin/systemd-cryptenroll": ("usr/bin/systemd-cryptenroll",),
    "bin/systemd-cryptsetup": ("usr/bin/systemd-cryptsetup",),
}
"""What opens an encrypted filesystem by the TPM, out of the tools tree `crypt`."""
_OPENED = ("libtss2-esys.so.0", "libtss2-mu.so.0", "libtss2-rc.so.0", "libtss2-tcti-device.so.0")
"""Libraries of theirs that they open by name."""
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "lib64", "lib",
              "usr/lib/x86_64-linux-gnu/systemd")  # fmt: skip

_PATIENCE = (
    "etc/modprobe.d/kbuild-watchdog.conf",
    b"options i6300esb heartbeat=60\noptions iTCO_wdt heartbeat=60\noptions wdat_wdt timeout=60\n"
    b"options sp5100_tco heartbeat=60\noptions hpwdt soft_margin=60\noptions softdog soft_margin=60\n",
)
"""How many seconds a machine may hang: their own defaults, 30 for some, are little for a slow one."""

_LEASE = b"""#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/$mask" dev "$interface"
for one in $router; do ip route add default via "$one" dev "$interface"; done
"""

Read = Callable[[str], bytes | None]
"""A file's content by its path in a tree, links followed; None when there is none."""


HOOKS = ("start", "root")
"""When a hook runs: before the disk is looked for; when the root is mounted at /sysroot, before it starts."""


@dataclass(frozen=True, slots=True)
class More:
    """What an initrd has beyond what every machine's has.

    `early` modules are loaded on every machine, `modules` when a device asks for them, with those of network
    cards where there is `network`; `files` by path; `hooks` are scripts by when they run, in their order.
    """

    early: Sequence[str] = ()
    modules: Sequence[str] = ()
    files: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    hooks: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    network: bool = False
    encryption: Read | None = None
    """Where there is one, the tree that what opens an encrypted persistent filesystem comes from."""

    def json(self) -> dict[str, Any]:
        """What stands for it in a key: contents by their digests."""
        return {
            "early": list(self.early),
            "modules": list(self.modules),
            "files": {path: [mode, of_bytes(data).digest] for path, (mode, data) in self.files.items()},
            "hooks": {when: [of_bytes(one).digest for one in some] for when, some in self.hooks.items()},
            "network": self.network,
            "encryption": self.encryption is not None,
        }


def build(tools: Read, kernel: Files, version: str, more: More = More()) -> bytes:
    """The archive for the kernel of this version, not compressed.

    Raises `missing-tool`, `missing-module`, and for what was asked for by name `initrd-module`.
    """
    return cpio.pack(tree(tools, kernel, version, more).members())


def beside(files: Mapping[str, cpio.Buffer], folder: str) -> list[cpio.Buffer]:
    """An archive of these files in a folder, in pieces, for the kernel to unpack after the initrd before it."""
    return cpio.parts(
        cpio.Tree({f"{folder}/{name}": (0o444, data) for name, data in files.items()}, {}).members()
    )


def recipe() -> str:
    """What of this program's own the initrd is made of, for the record of it."""
    parts = (
        script(),
        _encrypted(),
        " ".join((*APPLETS, *PROGRAMS, *ENCRYPTION, *_OPENED)).encode(),
        " ".join(
            (*modules.ALWAYS, "-", *modules.BY_DEVICE, "-", *modules.NETWORK, "-", *modules.ENCRYPTION)
        ).encode(),
        _LEASE,
        _PATIENCE[1],
        " ".join(COMPRESS).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def dracut_recipe() -> str:
    """The same of what tells dracut."""
    return hashlib.sha256(_dracut()).hexdigest()


def _dracut() -> bytes:
    return Path(__file__).with_name("dracut.sh").read_bytes()


def script() -> bytes:
    """The first program of every machine."""
    return Path(__file__).with_name("initrd.sh").read_bytes()


def _encrypted() -> bytes:
    return Path(__file__).with_name("encrypted.sh").read_bytes()


def tree(tools: Read, kernel: Files, version: str, more: More = More()) -> cpio.Tree:
    """The files of the initrd."""
    loaded, builtin = _modules(kernel, version, more)
    folder = f"lib/modules/{version}"
    files = {f"{folder}/{module.name}.ko": (0o644, module.image) for module in loaded}
    files |= {
        f"{folder}/{name}": (0o644, text.encode()) for name, text in modules.depmod(loaded, builtin).items()
    }
    names = {module.name for module in loaded}
    always = [n for n in map(modules.canonical, (*modules.ALWAYS, *more.early)) if n in names]
    files["etc/modules"] = (0o644, "".join(f"{name}\n" for name in always).encode())
    files["init"] = (0o755, script())
    files["bin/lease"] = (0o755, _LEASE)
    files[_PATIENCE[0]] = (0o644, _PATIENCE[1])
    for when, scripts in more.hooks.items():
        files |= {f"hooks/{when}/{number:02}": (0o755, text) for number, text in enumerate(scripts)}
    if more.encryption:
        files["bin/encrypted"] = (0o644, _encrypted())
        files |= _programs(more.encryption, ENCRYPTION, _OPENED)
    links = {f"bin/{applet}": "busybox" for applet in APPLETS}
    return cpio.Tree(
        files | _programs(tools) | dict(more.files), links, ("dev", "proc", "run", "sys", "sysroot")
    )


def for_dracut(
    tools: Read, kernel: Files, version: str, more: More
) -> tuple[dict[str, bytes], tuple[str, str]]:
    """What `dracut.sh` is given: files of /in, and the words MODULES and EARLY, both of modules that exist."""
    paths, _, builtin = _found(kernel, version)
    _refuse_unknown((*more.early, *more.modules), paths, builtin, version)
    files = {"initrd.sh": script(), "busybox": _first(tools, PROGRAMS["bin/busybox"], "busybox")}
    files["dracut.sh"] = _dracut()
    files[f"files/{_PATIENCE[0]}"] = _PATIENCE[1]
    files |= {f"files/{path}": data for path, (_, data) in more.files.items()}
    for when, scripts in more.hooks.items():
        files |= {f"hooks/{when}/{number:02}": text for number, text in enumerate(scripts)}
    by_device, early = (*modules.BY_DEVICE, *more.modules), (*modules.ALWAYS, *more.early)
    some, first = (
        " ".join(name for name in map(modules.canonical, names) if name in paths)
        for names in (by_device, early)
    )
    return files, (some, first)


def _found(kernel: Files, version: str) -> tuple[dict[str, str], str, frozenset[str]]:
    """The modules of this kernel by name, the folder they are in, and the names of those it has built in."""
    for top in (f"usr/lib/modules/{version}", f"lib/modules/{version}"):
        paths = {name: path for path in kernel.paths(top) if (name := modules.name_of(path))}
        if paths:
            return paths, top, _builtin(kernel.read(f"{top}/modules.builtin") or b"")
    raise KbuildError(f"no layer has modules of kernel {version}", reason="missing-module")


def _modules(kernel: Files, version: str, more: More) -> tuple[list[modules.Module], frozenset[str]]:
    """The modules to take, and the names of those the kernel has built in."""
    paths, _, builtin = _found(kernel, version)
    named = (*more.early, *more.modules)
    _refuse_unknown(named, paths, builtin, version)
    wanted = (*modules.ALWAYS, *modules.BY_DEVICE, *(modules.NETWORK if more.network else ()))
    wanted += (*(modules.ENCRYPTION if more.encryption else ()), *named)
    return modules.closure(wanted, paths, builtin, lambda path: kernel.read(path) or b""), builtin


def _refuse_unknown(
    named: Sequence[str], paths: Mapping[str, str], builtin: frozenset[str], version: str
) -> None:
    for name in map(modules.canonical, named):
        if name not in paths and name not in builtin:
            raise InputError(
                f"no layer has the module {name!r} of kernel {version}, which the initrd is to have",
                reason="initrd-module",
                hint=nearest(name, paths),
            )


def _programs(
    tools: Read, programs: Mapping[str, tuple[str, ...]] = PROGRAMS, opened: Sequence[str] = ()
) -> dict[str, tuple[int, bytes]]:
    """The programs, the loader each names, all libraries they want and those they open by name."""
    files: dict[str, tuple[int, bytes]] = {}
    wanted = list(opened)
    for path, places in programs.items():
        image = _first(tools, places, path)
        files[path] = (0o755, image)
        wanted += elf.needed(image)
        if loader := elf.interpreter(image).lstrip("/"):
            name = posixpath.basename(loader)
            files[loader] = (0o755, _first(tools, [f"{place}/{name}" for place in _LIBRARIES], loader))
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen or name.startswith("ld-linux"):
            continue
        seen.add(name)
        image = _first(tools, [f"{place}/{name}" for place in _LIBRARIES], name)
        files[f"lib/{name}"] = (0o755, image)
        wanted += elf.needed(image)
    return files


def _first(tools: Read, places: tuple[str, ...] | list[str], name: str) -> bytes:
    for place in places:
        if (image := tools(place)) is not None:
            return image
    raise KbuildError(f"the tools trees `boot` and `crypt` have no {name}", reason="missing-tool")


def _builtin(text: bytes) -> frozenset[str]:
    return frozenset(name for line in text.decode().split() if (name := modules.name_of(line)))
