"""Modules that somebody compiled: out of a package of any family, a tar, or a folder, for one release of a kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kairosbuild.boot.modules import name_of
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.node import Task
from kairosbuild.kernels import abi
from kairosbuild.kernels.module import Module, read

_PLACE = re.compile(r"(?:.*/)?lib/modules/([^/]+)/.+")
_DEB, _RPM = b"!<arch>\n", b"\xed\xab\xee\xdb"


def files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The module files of a .deb, an .rpm or a tar, packed or not, by path."""
    from kairosbuild.oci.reader import read_tar
    from kairosbuild.oci.transport import decompress
    from kairosbuild.sources import deb, rpm

    with archive.open("rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        if head == _DEB:
            members = deb.members(archive)
        elif head[:4] == _RPM:
            members = rpm.members(archive)
        else:
            members = read_tar(decompress(stream))
        for entry, content in members:
            if content is not None and name_of(entry.path):
                yield entry.path, content.read()


def modules(task: Task, kernel: abi.Kernel, packages: Sequence[Blob]) -> list[Module]:
    """What a node of drivers brings compiled, in packages and by its `prebuilt`, for this kernel's release."""
    given: dict[str, list[tuple[str, bytes]]] = {}
    if packages:
        given["the packages"] = [one for package in packages for one in files(task.path(package))]
    for label in sorted(task.spec.prebuilt):
        role = f"prebuilt.{label}"
        if archive := task.inputs.get(f"{role}.archive"):
            given[role] = list(files(task.path(archive[0].outputs["file"])))
        else:
            given[role] = _of_workspace(task, f"{role}.source", task.spec.prebuilt[label].source)
    return [
        one
        for what, some in given.items()
        for one in chosen(some, kernel.release, f"{task.name}: {what}", kernel.name)
    ]


def _of_workspace(task: Task, role: str, named: str) -> list[tuple[str, bytes]]:
    """The modules of a folder of the workspace, or the one that is named."""
    paths = [(one.logical or named, one.logical) for one in task.sources[role] if one.blob]
    return [(path, task.source_path(role, logical).read_bytes()) for path, logical in paths if name_of(path)]


def chosen(found: Iterable[tuple[str, bytes]], release: str, owner: str, kernel: str) -> list[Module]:
    """Those for this release, and those that lie in no release's folder. Raises InputError (`drivers-release`)."""
    modules, releases = [], set()
    for path, data in found:
        place = _PLACE.fullmatch(path)
        if place is None or place[1] == release:
            modules.append(read(path, data))
        else:
            releases.add(place[1])
    if modules:
        return modules
    have = " and ".join(sorted(releases)) or "no kernel at all"
    raise InputError(
        f"{owner} has modules for {have}, and {kernel!r} is {release}",
        reason="drivers-release",
        hint="take what was compiled for this kernel",
    )
