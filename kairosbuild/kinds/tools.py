"""Kind `tools`: the programs that build steps run, as one small pinned tree per purpose.

Debian packages of one suite with all they depend on, unpacked as they are: no maintainer script runs, nothing
is configured, so nothing of the host can get in. There is no ld.so.cache and no alternative is chosen; what
runs there finds its libraries at the default places and its helpers by their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.graph.node import Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import text, texts
from kairosbuild.sources.tree import SHELL, WITHOUT, write_tree

SUITE = "trixie"
PURPOSES: dict[str, tuple[str, ...]] = {
    "image": (*SHELL, "erofs-utils", "kmod", "xz-utils", "zstd"),
    "agent": ("python3.13-minimal", "libpython3.13-stdlib", "python3-yaml", "openssl", "libc-bin"),
    "boot": ("systemd-boot-efi", "busybox-static", "dmsetup"),
    "crypt": (
        "systemd-cryptsetup", "cryptsetup-bin", "e2fsprogs", "libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64",
        "libtss2-rc0t64", "libtss2-tcti-device0t64",
    ),
    "qemu": (*SHELL, "qemu-system-x86", "ovmf", "swtpm", "busybox-static"),
    "media": (*SHELL, "grub-common", "grub-pc-bin", "squashfs-tools"),
    "apt": (*SHELL, "apt", "dpkg"),
    "kernel": (
        *SHELL, "base-files", "bash", "bc", "bison", "bzip2", "cpio", "diffutils", "flex", "gcc", "kmod", "libc6-dev",
        "libelf-dev", "libssl-dev", "make", "mawk", "openssl", "perl-base", "perl", "rsync", "xz-utils", "zstd",
    ),
    "dracut": (
        *SHELL, "base-files", "bash", "cpio", "diffutils", "dmsetup", "dracut-core", "gawk", "kmod", "mount", "udev",
        "util-linux", "xz-utils", "zstd",
    ),
    "buildah": (*SHELL, "buildah", "netavark", "util-linux", "mount"),
    "sandbox": (*SHELL, "bubblewrap", "uidmap", "util-linux"),
    "clock": ("libfaketime",),
}  # fmt: skip
"""What is in the tree of each purpose, before dependencies."""

SUITES = {"clock": "bookworm"}
"""Where a tree is not of `SUITE`: a library that is loaded into the programs of others asks for an old libc."""


@dataclass(frozen=True, slots=True)
class ToolsSpec:
    """A named purpose, or packages of one's own."""

    purpose: str = text("A tree of the built-in ones.", "", example="image")
    packages: tuple[str, ...] = texts("Debian packages to have in the tree, with all they depend on.", ())
    suite: str = text("The Debian suite they come from.", SUITE)


class Tools:
    """See the module."""

    name: ClassVar[str] = "tools"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = ToolsSpec
    produces: ClassVar[str] = "tools"

    def tools(self, spec: ToolsSpec) -> tuple[str, ...]:
        """None: everything else stands on this."""
        return ()

    def lock(self, spec: ToolsSpec, locker: Locker) -> Locked:
        """The closure of the packages over their dependencies, out of the suite's verified index."""
        from kairosbuild.sources.debian import Suite, closure, open_archive

        architecture = locker.platform.rpartition("/")[2]
        archive = open_archive([Suite("debian", spec.suite)], architecture, locker.fetch)
        found = closure(archive.index, wanted(spec), WITHOUT)
        return Locked(
            {"packages": [package.json() for package in found]},
            tuple(Material(package.uri, package.digest, package.size) for package in found),
        )

    def build(self, task: Task) -> Outputs:
        """Unpack them into one canonical layer."""
        debs = [task.path(Blob(m.digest, m.size)) for m in task.locked.materials]
        made = task.scratch / "layer.tar"
        with made.open("wb") as out:
            index = write_tree(debs, out, task.scratch, task.platform.rpartition("/")[2])
        return layer_outputs(task, made, index)


def wanted(spec: ToolsSpec) -> tuple[str, ...]:
    """The packages a spec asks for. Raises InputError (`tools-purpose`, `tools-empty`)."""
    if spec.purpose and spec.purpose not in PURPOSES:
        raise InputError(
            f"there is no tools tree for the purpose {spec.purpose!r}",
            reason="tools-purpose",
            hint=nearest(spec.purpose, PURPOSES),
        )
    found = PURPOSES.get(spec.purpose, ()) + spec.packages
    if not found:
        raise InputError("a tools node needs a purpose or packages", reason="tools-empty")
    return found


def declaration_for(purpose: str) -> Declaration:
    """The node that stands for a built-in tools tree, named `tools:PURPOSE`."""
    packages = list(wanted(ToolsSpec(purpose=purpose)))  # in the spec, so that a lock knows when they change
    spec: dict[str, Any] = {"purpose": purpose, "packages": packages, "suite": SUITES.get(purpose, SUITE)}
    return Declaration(f"tools:{purpose}", "tools", spec)
