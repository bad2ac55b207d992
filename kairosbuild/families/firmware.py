"""The firmware of a node of drivers: what was asked for, out of the packages that were locked for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from kairosbuild.core.canonical import loads
from kairosbuild.core.digest import Blob
from kairosbuild.graph.node import Task
from kairosbuild.kernels import firmware

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

_MB = 1_000_000


def taken(task: Task, packages: Sequence[Blob], spool: BinaryIO) -> Iterator[Item]:
    """The files that a node of drivers asks for, out of the packages that have them. Contents go to `spool`."""
    from kairosbuild.sources.deb import unpack

    if not packages:
        return
    top = f"{firmware.FOLDER}/"
    items = {
        entry.path.removeprefix(top): (entry, content)
        for entry, content in unpack(map(task.path, packages), spool, lambda path: path.startswith(top))
        if entry.path.startswith(top) and entry.type != "dir"
    }
    have = {path: entry.target for path, (entry, _) in items.items()}
    wanted = task.spec.firmware or ("*",)
    found: set[str] = set()
    for wish in firmware.wishes(wanted, _asked(task), task.spec.kernel):
        found |= set(firmware.chosen(wish, have))
    _tell(task, {path: items[path][0].size for path in items}, found)
    yield from (items[path] for path in sorted(found))


def _asked(task: Task) -> Mapping[str, Sequence[str]]:
    """Module → the firmware it asks for: out of the lock, or where that could not know, of the kernel."""
    asked: Mapping[str, Sequence[str]] | None = task.locked.data["asked"]
    if asked is not None:
        return asked
    if "modules" not in task.inputs["kernel"][0].outputs:
        return {}
    modules: Mapping[str, Sequence[str]] = loads(
        task.path(task.inputs["kernel"][0].outputs["modules"]).read_bytes()
    )
    return modules


def _tell(task: Task, sizes: Mapping[str, int], taken: Collection[str]) -> None:
    here, there = sum(sizes[one] for one in taken), sum(sizes.values())
    task.note(
        f"firmware: {len(taken)} of the {len(sizes)} files of its packages, "
        f"{here / _MB:.1f} MB of {there / _MB:.1f} MB: {(there - here) / _MB:.1f} MB saved"
    )
