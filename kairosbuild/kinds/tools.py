"""Kind `tools`: the programs that build steps run, as one small pinned tree per purpose.

Debian packages of one suite with all they depend on, unpacked as they are: no maintainer script runs, nothing
is configured, so nothing of the host can get in. There is no ld.so.cache and no alternative is chosen; what
runs there finds its libraries at the default places and its helpers by their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.graph.node import Locked, Locker, Material, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import text, texts

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

SUITE = "trixie"
SHELL = ("dash", "coreutils", "sed", "grep", "findutils", "tar", "libc-bin")
PURPOSES: dict[str, tuple[str, ...]] = {
    "image": (*SHELL, "erofs-utils", "kmod", "xz-utils", "zstd"),
    "boot": ("systemd-boot-efi", "busybox-static", "dmsetup"),
    "qemu": (*SHELL, "qemu-system-x86", "ovmf"),
    "apt": (*SHELL, "apt", "dpkg"),
    "buildah": (*SHELL, "buildah", "netavark", "util-linux", "mount"),
    "sandbox": (*SHELL, "bubblewrap", "uidmap", "util-linux"),
}  # fmt: skip
"""What is in the tree of each purpose, before dependencies."""

WITHOUT = (
    "adduser", "base-files", "base-passwd", "cdebconf", "debconf", "debian-archive-keyring",
    "init-system-helpers", "install-info", "libpam-modules", "libpam-modules-bin", "libpam-runtime",
    "login", "login.defs", "mount", "passwd", "perl-base", "sensible-utils", "sqv", "sysvinit-utils", "ucf",
)  # fmt: skip
"""Dependencies that only maintainer scripts or an installed system need."""

_DROPPED = (
    "usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/",
    "usr/share/bash-completion/", "usr/share/bug/", "usr/share/doc-base/", "usr/share/menu/",
    "usr/share/pixmaps/", "usr/share/zsh/", "var/",
)  # fmt: skip
_FOLDERS = ("dev", "etc", "in", "out", "proc", "root", "run", "sys", "tmp", "var", "var/lib", "var/tmp")


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
        import tempfile

        from kairosbuild.oci.entry import Entry
        from kairosbuild.oci.layer import write_layer
        from kairosbuild.sources.deb import merged_links, unpack

        debs = [task.path(Blob(m.digest, m.size)) for m in task.locked.materials]
        architecture = task.platform.rpartition("/")[2]
        made = task.scratch / "layer.tar"
        with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
            items = {entry.path: (entry, content) for entry, content in unpack(debs, spool, _keep)}
            added = [*merged_links(architecture), *((Entry(f, "dir", 0o755), None) for f in _FOLDERS)]
            for entry, content in added:
                items.setdefault(entry.path, (entry, content))
            index = write_layer(map(_plain, items.values()), out, 0, flat_time=True)
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
    spec: dict[str, Any] = {"purpose": purpose, "packages": [], "suite": SUITE}
    wanted(ToolsSpec(purpose=purpose))
    return Declaration(f"tools:{purpose}", "tools", spec)


def _keep(path: str) -> bool:
    return not path.startswith(_DROPPED)


def _plain(item: Item) -> Item:
    """Everything is root's, and nothing needs more rights than to be run."""
    from kairosbuild.oci.entry import Entry

    entry, content = item
    return Entry(entry.path, entry.type, entry.mode & 0o755 | 0o444, 0, 0, entry.size, entry.target), content
