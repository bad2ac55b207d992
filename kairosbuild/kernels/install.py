"""A kernel out of whatever it came in, as everything here wants it: all beneath lib/modules/RELEASE.

Linux and systemd agree on `vmlinuz` in that folder (kernel-install(8)). Headers go into a layer of their own:
no machine needs them, whoever compiles modules does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kairosbuild.boot import elf
from kairosbuild.boot.modules import expand, name_of
from kairosbuild.core.errors import NodeError
from kairosbuild.kernels import abi, kconfig
from kairosbuild.kernels.module import firmware_of, read
from kairosbuild.oci.layer import Item, Slice

_MODULES = re.compile(r"((?:usr/)?lib/modules/)([^/]+)")
_FORCING = (
    "CONFIG_MODULE_SIG_FORCE",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
)
_FROM_BOOT = ("vmlinuz", "config", "System.map")
_HEADERS = re.compile(r"usr/src/.|usr/lib/linux-kbuild|(?:usr/)?lib/modules/[^/]+/(?:build|source)(?:/|$)")
_SAYS_RELEASE = re.compile(r"(usr/src/(?:kernels/)?[^/]+/)include/config/kernel\.release")
_SYMVERS = re.compile(r".*/Module\.symvers|(?:usr/)?lib/modules/[^/]+/symvers(?:\.(?:gz|xz|zst))?")


@dataclass(frozen=True, slots=True)
class Installed:
    """A kernel's own files by path, and its headers'. `folder` is lib/modules/ or usr/lib/modules/."""

    folder: str
    release: str
    files: Mapping[str, Item]
    headers: Mapping[str, Item]

    def path(self, name: str) -> str:
        """Where a file of this name is, or would be."""
        return f"{self.folder}{self.release}/{name}"

    def bytes(self, path: str) -> bytes | None:
        """The content of a file, of the headers or the kernel's own; None when there is none."""
        item = self.files.get(path) or self.headers.get(path)
        return content(item) if item and item[0].type == "file" else None


def wanted(path: str) -> bool:
    """Whether a path of a package or a root belongs to a kernel."""
    return path.startswith("boot/") or bool(_MODULES.match(path)) or bool(_HEADERS.match(path))


def arranged(items: Iterable[Item], named: str = "", only: str = "") -> Installed:
    """Sort the files of one kernel. Raises NodeError (`kernel-package`) when they are of none, or of several.

    `named` says for messages where they are from; `only` is the release wanted of several.
    """
    every = [item for item in items if wanted(item[0].path)]
    folders = {m.groups() for (e, _) in every if (m := _MODULES.match(e.path)) and not _HEADERS.match(e.path)}
    folders = {one for one in folders if not only or one[1] == only}
    if len(folders) != 1:
        names = ", ".join(sorted(release for _, release in folders)) or only or "no kernel"
        raise NodeError(
            f"{named or 'the package'} has modules for {names}",
            reason="kernel-package",
            hint="say which under `only`" if folders else "",
        )
    folder, release = folders.pop()
    placed = (_placed(item, folder, release) for item in every if not _HEADERS.match(item[0].path))
    files = {item[0].path: item for item in placed if item}
    if f"{folder}{release}/vmlinuz" not in files:
        raise NodeError(
            f"{named or 'the package'} has no kernel for its modules {release}", reason="kernel-package"
        )
    headers = {item[0].path: item for item in every if _HEADERS.match(item[0].path)}
    if not any(entry.type == "file" for entry, _ in headers.values()):
        headers = {}  # links to what is not there
    return Installed(folder, release, files, _of_release(headers, release, named or "the package"))


def _of_release(headers: Mapping[str, Item], release: str, named: str) -> Mapping[str, Item]:
    """The headers without those of other kernels. Raises NodeError (`kernel-headers`) when there are only such."""
    said = {
        match[1]: content(item).decode("utf-8", "replace").strip()
        for path, item in headers.items()
        if (match := _SAYS_RELEASE.fullmatch(path))
    }
    others = tuple(folder for folder, theirs in said.items() if theirs != release)
    if others and release not in said.values():
        raise NodeError(
            f"{named}: the kernel is {release}, and the headers with it are of {', '.join(sorted(set(said.values())))}",
            reason="kernel-headers",
            hint="modules compiled against these would be another kernel's: bring its own, or none",
        )
    return {path: item for path, item in headers.items() if not path.startswith(others)}


def symbols(kernel: Installed) -> bytes:
    """Its Module.symvers, sorted; empty when nothing that came with it has one."""
    for path in sorted([*kernel.files, *kernel.headers]):
        if _SYMVERS.fullmatch(path) and (found := kernel.bytes(path)) is not None:
            return abi.canonical(expand(path, found))
    return b""


def promise(kernel: Installed, headers: str) -> abi.Abi:
    """What it promises to modules. `headers` is the digest of its headers."""
    options = _options(kernel)
    first = next((path for path in sorted(kernel.files) if name_of(path)), "")
    flags = read(first, kernel.bytes(first) or b"").flags if first else ""
    found = abi.Abi(flags, any(options.get(one) == "y" for one in _FORCING))
    return found if found.versioned else replace(found, only=headers)


def locks_down(kernel: Installed) -> bool:
    """Whether it takes no module without a signature once firmware enforces signatures (Secure Boot)."""
    return _options(kernel).get("CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT") == "y"


def _options(kernel: Installed) -> dict[str, str]:
    return kconfig.read(kernel.bytes(kernel.path("config")) or b"", "config")


def firmware(kernel: Installed) -> dict[str, list[str]]:
    """What each of its modules asks for."""
    return {
        name: list(firmware_of(elf.modinfo(expand(path, kernel.bytes(path) or b""))))
        for path in sorted(kernel.files)
        if (name := name_of(path))
    }


def content(item: Item) -> bytes:
    """The bytes of a file, wherever they are."""
    entry, where = item
    if isinstance(where, bytes):
        return where
    if isinstance(where, Slice):
        return os.pread(where.fd, entry.size, where.offset)
    assert isinstance(where, str | Path), entry.path
    return Path(where).read_bytes()


def _placed(item: Item, folder: str, release: str) -> Item | None:
    """Where it goes; None for what stays out."""
    entry, where = item
    if entry.path.startswith("boot/"):
        name, _, rest = entry.path.removeprefix("boot/").partition("-")
        mine = rest in ("", release) or ("/" not in rest and not rest.startswith(tuple("0123456789")))
        if name not in _FROM_BOOT or not mine:
            return None
        return replace(entry, path=f"{folder}{release}/{name}"), where
    return (
        item if entry.path.startswith(f"{folder}{release}/") or entry.path == f"{folder}{release}" else None
    )
