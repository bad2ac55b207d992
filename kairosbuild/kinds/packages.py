"""Kind `packages`: packages of the distribution installed onto what is below; the difference is the layer.

Which distribution that is, the base says; how its packages are resolved and installed is in `families`. A large set
comes to several layers (see `families/parts.py`), and what an edit of it leaves alone is not installed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.core.errors import InputError
from kairosbuild.families.below import below, family_of, json
from kairosbuild.families.family import Request
from kairosbuild.families.parts import parts_of
from kairosbuild.families.table import TABLE
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import stack_of, stored_outputs
from kairosbuild.recipe.fields import flag, ref, text, texts


@dataclass(frozen=True, slots=True)
class PackagesSpec:
    """What to install onto what."""

    on: str = ref("The node whose stack they are installed onto.", accepts=("layer",))
    install: tuple[str, ...] = texts(
        "Packages, as the distribution's own client takes them: NAME, NAME=VERSION, …", (), example="systemd"
    )
    remove: tuple[str, ...] = texts("Packages of the stack below to remove.", ())
    recommends: bool = flag("Install what the packages recommend (weak dependencies), too.")
    release: str = text("The release they come from; without it, that of the base.", "", example="trixie")
    repositories: tuple[str, ...] = texts(
        "Components or repositories of it; without them, those of the base.", (), example="contrib"
    )


class Packages:
    """See the module."""

    name: ClassVar[str] = "packages"
    version: ClassVar[int] = 4
    Spec: ClassVar[type] = PackagesSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: PackagesSpec) -> tuple[str, ...]:
        """None: the stack's own programs install; tools are needed to resolve only."""
        return ()

    def lock(self, spec: PackagesSpec, locker: Locker) -> Locked:
        """The plan of the distribution's resolver for what is missing, as exact files.

        `below` lists what the stack below is made of, for those who are on top of this.
        """
        if not spec.install and not spec.remove:
            raise InputError("there is nothing to install and nothing to remove", reason="packages-empty")
        found = below(locker.upstream("on"))
        request = Request(spec.install, spec.remove, spec.recommends, spec.release, spec.repositories)
        locked = family_of(found).lock(request, found, locker)
        data = {**locked.data, "system": found.system.json(), "below": json(found)}
        return Locked(data, locked.materials)

    def build(self, task: Task) -> Outputs:
        """Let the family install them, and keep what changed."""
        stack = stack_of(task, task.inputs["on"])
        family = TABLE[task.locked.data["system"]["family"]]
        parts = parts_of(task.locked)
        for part in parts:
            step = family.install(task, part, stack)
            stack = (*stack, _kept(task, step) if len(parts) > 1 else _done(task, step))
        return stored_outputs(task, stack[-1], stack[:-1])


def _done(task: Task, step: Action) -> LayerRef:
    layer = task.execute(step).layer
    assert layer is not None
    return layer


def _kept(task: Task, step: Action) -> LayerRef:
    """The layer of a step, made once for all that decides what it is."""

    def make() -> Outputs:
        layer = _done(task, step)
        return {"layer": layer.layer, "index": layer.index}

    preimage = {
        "command": step.command,
        "root": [one.digest for one in step.root],
        "inputs": {path: blob.digest for path, blob in step.inputs.items()},
        "env": step.env,
        "cwd": step.cwd,
        "drop": step.drop,
        "platform": step.platform,
        "epoch": task.epoch,
    }
    made = task.derive("packages-part", 1, preimage, make)
    return LayerRef(made["layer"], made["index"])
