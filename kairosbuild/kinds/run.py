"""Kinds `run` and `rule`: a command in the sandbox; one makes a layer of what it changes, one files."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import NodeError
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import UNLOCKED, Input, Locked, Locker, Outputs, SourceFile, Task
from kairosbuild.graph.stack import stack_of, stored_outputs
from kairosbuild.recipe.fields import refmap, refs, sourcemap, text, textmap, texts

_LINKS = 40  # links followed one after the other, as Linux does

ROOT = ("layer", "tools")


def _plain(paths: Iterable[str]) -> str:
    """What is wrong with paths beneath /in or /out, or ""."""
    for path in paths:
        if any(part in ("", ".", "..") for part in path.split("/")):
            return f"{path!r} is not a plain relative path"
    return ""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command, its root, and what it is given."""

    on: tuple[str, ...] = refs("Layers that are the command's root, bottom to top.", accepts=ROOT, least=1)
    command: str = text("What `/bin/sh -euc` runs, as root.", least=1)
    arguments: tuple[str, ...] = texts("The command's $1, $2, …", ())
    inputs: Mapping[str, str] = refmap(
        "Nodes whose files are at /in/LABEL (at /in/LABEL/OUTPUT when a node has several).", {}, check=_plain
    )
    sources: Mapping[str, str] = sourcemap(
        "Files and folders of the workspace at /in/LABEL.", {}, check=_plain
    )
    env: Mapping[str, str] = textmap("Environment variables.", {})


@dataclass(frozen=True, slots=True)
class RunSpec(CommandSpec):
    """A command over a stack of layers."""

    drop: tuple[str, ...] = texts("Paths (globs) that are left out of the layer.", ())


@dataclass(frozen=True, slots=True)
class RuleSpec(CommandSpec):
    """A command that makes files: it leaves them in /out."""

    outputs: tuple[str, ...] = texts("Files the command leaves in /out.", least=1, check=_plain)


class _Command:
    """What the two kinds share."""

    def tools(self, spec: CommandSpec) -> tuple[str, ...]:
        """None: the root has what the command needs."""
        return ()

    def lock(self, spec: CommandSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED


class Run(_Command):
    """What the command changes in its root becomes a layer on top of it."""

    name: ClassVar[str] = "run"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = RunSpec
    produces: ClassVar[str] = "layer"

    def build(self, task: Task) -> Outputs:
        """Run it and keep what changed."""
        below = stack_of(task, task.inputs["on"])
        done = task.execute(replace(_action(task, below), layer=True, drop=task.spec.drop))
        assert done.layer is not None, "an action with layer=True yields one"
        return stored_outputs(task, done.layer, below)


class Rule(_Command):
    """What the command leaves in /out becomes the node's files; the root is read-only."""

    name: ClassVar[str] = "rule"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = RuleSpec
    produces: ClassVar[str] = "file"

    def build(self, task: Task) -> Outputs:
        """Run it and keep its outputs by name; a single one is also `file`."""
        action = _action(task, stack_of(task, task.inputs["on"]))
        done = task.execute(replace(action, outputs=task.spec.outputs))
        if len(done.outputs) == 1:
            return {**done.outputs, "file": next(iter(done.outputs.values()))}
        return done.outputs


def _action(task: Task, below: Sequence[LayerRef]) -> Action:
    """The command over its root, as both kinds run it; what is kept of it is theirs to say."""
    staged, executable = _staged(task)
    return Action(
        command=_words(task.spec),
        root=tuple(ref.layer for ref in below),
        inputs=staged,
        executable=executable,
        env=task.spec.env,
        platform=task.platform,
    )


def _words(spec: CommandSpec) -> tuple[str, ...]:
    return ("/bin/sh", "-euc", spec.command, "sh", *spec.arguments)


def _staged(task: Task) -> tuple[dict[str, Blob], tuple[str, ...]]:
    """What stands in /in, and what of it carries the exec bit."""
    staged: dict[str, Blob] = {}
    executable: list[str] = []
    for role, some in task.inputs.items():
        if role.startswith("inputs."):
            for one in some:
                staged.update(_files(role[len("inputs.") :], one))
    for role, files in task.sources.items():
        label = role[len("sources.") :]
        for logical, file in _followed(task, role, files):
            path = f"{label}/{logical}" if logical else label
            assert file.blob is not None, "a source file of type file has a blob"
            staged[path] = file.blob
            if file.mode & 0o111:
                executable.append(path)
    return staged, tuple(executable)


def _files(label: str, one: Input) -> Mapping[str, Blob]:
    if "file" in one.outputs:
        return {label: one.outputs["file"]}
    return {f"{label}/{name}": blob for name, blob in one.outputs.items()}


def _followed(task: Task, role: str, files: Sequence[SourceFile]) -> Iterator[tuple[str, SourceFile]]:
    """The files of a source; a link to one stands for it. Raises NodeError for one that leads elsewhere."""
    by_path = {file.logical: file for file in files}
    for file in files:
        found: SourceFile | None = file
        for _ in range(_LINKS):
            if found is None or found.type != "link":
                break
            beside = posixpath.join(posixpath.dirname(found.logical), found.target)
            found = by_path.get(posixpath.normpath(beside))
        if found is None or found.type == "link":
            raise NodeError(
                f"{task.name}: the link {file.logical!r} of {role} leads to no file of this source",
                reason="source-link",
                hint=f"it points to {file.target!r}",
            )
        if found.type == "file":
            yield file.logical, found
