"""Kind `initrd`: the one initrd that all machines share, with modules, files and hooks of one's own.

An artifact that names it starts with it. What it adds is small and declared; how the root is opened and
verified stays the shared script's (docs/boot.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.artifacts.entry import dracut_initrd, shared_initrd
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.boot.initrd import HOOKS, More
from kairosbuild.core.canonical import dumps
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.kernels.lists import complaint
from kairosbuild.recipe.fields import choice, ref, sourcemap, texts

_OURS = ("init", "etc/modules", "lib/modules", "bin", "sbin", "hooks")


def _paths(paths: Mapping[str, str]) -> str:
    """What is wrong with paths in the initrd, or ""."""
    for path in paths:
        if any(part in ("", ".", "..") for part in path.split("/")):
            return f"{path!r} is not a plain path; write it as etc/thing"
        if any(path == own or path.startswith(f"{own}/") for own in _OURS):
            return f"{path!r} is the shared initrd's own"
    return ""


def _stages(stages: Mapping[str, str]) -> str:
    """What is wrong with the names of hooks, or ""."""
    for stage in stages:
        if stage not in HOOKS:
            return f"there is no hook {stage!r}; {nearest(stage, HOOKS)}"
    return ""


@dataclass(frozen=True, slots=True)
class InitrdSpec:
    """What the initrd of an image has beyond the shared one."""

    image: str = ref("The image it starts.", accepts=("image",))
    generator: str = choice(
        "What makes it; dracut's is larger, has more drivers and udev, and opens the same root in the same way.",
        ("kbuild", "dracut"),
        "kbuild",
    )
    modules: tuple[str, ...] = texts(
        "Modules to have, loaded when a device asks for them.", (), check=complaint
    )
    early: tuple[str, ...] = texts("Modules to have and to load at once.", (), check=complaint)
    files: Mapping[str, str] = sourcemap(
        "Files and folders of the workspace, by their path in the initrd.", {}, check=_paths
    )
    hooks: Mapping[str, str] = sourcemap(
        "Shell scripts, or folders of such in the order of their names: `start` runs before the disk is "
        "looked for, `root` when the root is mounted at /sysroot. One that fails, or takes over a minute, ends the start.",
        {},
        check=_stages,
    )


class Initrd:
    """See the module."""

    name: ClassVar[str] = "initrd"
    version: ClassVar[int] = 8
    Spec: ClassVar[type] = InitrdSpec
    produces: ClassVar[str] = "initrd"

    def tools(self, spec: InitrdSpec) -> tuple[str, ...]:
        """zstd; what the initrd is made of."""
        return ("image", "boot", "dracut") if spec.generator == "dracut" else ("image", "boot")

    def lock(self, spec: InitrdSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """The shared one, and what was asked for."""
        spec: InitrdSpec = task.spec
        stack = stack_of_image(task)
        version = stack.kernel.version
        more = More(
            (*stack.early, *spec.early),
            spec.modules,
            {path: file for label in spec.files for path, file in _files(task, "files", label)},
            {stage: [data for _, (_, data) in _files(task, "hooks", stage)] for stage in spec.hooks},
        )
        make = dracut_initrd if spec.generator == "dracut" else shared_initrd
        made = make(task, stack, version, more)
        return {"initrd": made, "about": task.put_bytes(dumps({"kernel": version}))}


def _files(task: Task, field: str, label: str) -> Iterator[tuple[str, tuple[int, bytes]]]:
    """The files of one source by their paths. Raises InputError (`initrd-source`) for a link."""
    role = f"{field}.{label}"
    for file in task.sources[role]:
        if file.type == "link":
            raise InputError(
                f"{task.name}: {role} has the link {file.logical!r}",
                reason="initrd-source",
                hint="put the file itself there",
            )
        if file.type == "file":
            path = f"{label}/{file.logical}" if file.logical else label
            yield path, (file.mode, task.source_path(role, file.logical).read_bytes())
