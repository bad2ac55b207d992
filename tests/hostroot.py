"""A small root for sandboxed commands, made of this machine's own shell and core programs."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import LayerRef
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import write_layer
from kairosbuild.store.store import Store

PROGRAMS = (
    "sh",
    "cat",
    "ls",
    "id",
    "env",
    "mkdir",
    "rmdir",
    "touch",
    "chmod",
    "chown",
    "ln",
    "rm",
    "mv",
    "mkfifo",
    "mknod",
    "sleep",
    "md5sum",
    "stat",
    "readlink",
    "mount",
    "grep",
    "kill",
    "head",
    "uname",
    "cp",
    "ipcmk",
    "setsid",
    "setpriv",
)


def put_layer(store: Store, items: Iterable[tuple[Entry, Path | bytes | None]], epoch: int = 0) -> LayerRef:
    """Store a layer of these entries."""
    tar = store.cas.tmp() / "layer.tar"
    with tar.open("xb") as out:
        index = write_layer(items, out, epoch)
    blob = store.cas.put_file(tar)
    tar.parent.rmdir()
    return LayerRef(blob, store.cas.put_bytes(index))


def host_root(store: Store) -> LayerRef:
    """Store a layer with the shell, core programs and what they are linked with."""
    folders = {parent for path in _files() for parent in _parents(path)}
    items: list[tuple[Entry, Path | bytes | None]] = [
        (Entry(folder, "dir", 0o755), None) for folder in sorted(folders)
    ]
    items += [
        (Entry(path, "file", 0o755, size=place.stat().st_size), place) for path, place in _files().items()
    ]
    return put_layer(store, items)


def file_layer(store: Store, path: str, content: bytes, **more: int) -> Blob:
    """Store a layer with one file."""
    return put_layer(store, [(Entry(path, "file", size=len(content), **more), content)]).layer


@functools.cache
def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for program in filter(shutil.which, PROGRAMS):
        place = Path(shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin") or program)
        found[f"bin/{program}"] = place.resolve()
        linked = subprocess.run(["ldd", place], capture_output=True, text=True, check=False).stdout
        for path in re.findall(r"(/\S+) \(0x", linked):
            found[path.lstrip("/")] = Path(path).resolve()
    return found


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
