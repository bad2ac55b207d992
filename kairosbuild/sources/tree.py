"""Debian packages unpacked as they are, as a tree that programs run in: nothing is configured, no script runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

SHELL = ("dash", "coreutils", "sed", "grep", "findutils", "tar", "libc-bin")
"""What a script takes, before dependencies."""

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


def write_tree(debs: Sequence[Path], out: BinaryIO, folder: Path, architecture: str) -> bytes:
    """Write the layer of these packages' files at their places under merged /usr; return its index."""
    import tempfile

    from kairosbuild.oci.entry import Entry
    from kairosbuild.oci.layer import write_layer
    from kairosbuild.sources.deb import merged_links, unpack

    with tempfile.TemporaryFile(dir=folder) as spool:
        items = {entry.path: (entry, content) for entry, content in unpack(debs, spool, _keep)}
        added = [*merged_links(architecture), *((Entry(f, "dir", 0o755), None) for f in _FOLDERS)]
        for entry, content in added:
            items.setdefault(entry.path, (entry, content))
        return write_layer(map(_plain, items.values()), out, 0, flat_time=True)


def write_part(debs: Sequence[Path], out: BinaryIO, folder: Path, keep: Callable[[str], bool]) -> bytes:
    """Write the layer of some of their files, to stand above such a tree; return its index."""
    import tempfile

    from kairosbuild.oci.layer import write_layer
    from kairosbuild.sources.deb import unpack

    with tempfile.TemporaryFile(dir=folder) as spool:
        return write_layer(map(_plain, unpack(debs, spool, keep)), out, 0, flat_time=True)


def _keep(path: str) -> bool:
    return not path.startswith(_DROPPED)


def _plain(item: Item) -> Item:
    """Everything is root's, and nothing needs more rights than to be run."""
    from kairosbuild.oci.entry import Entry

    entry, content = item
    return Entry(entry.path, entry.type, entry.mode & 0o755 | 0o444, 0, 0, entry.size, entry.target), content
