"""Kind `image`: layers in their order, and a configuration, as one OCI image.

Nothing is copied: the image is a document that names the layers. What depends on the union of the layers
(module dependencies, the linker's cache) is settled here, in one small layer on top, made once for the layers
that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.artifacts.checks import foreseen_in_image, kernel_complaints, unsigned
from kairosbuild.artifacts.settle import settled
from kairosbuild.artifacts.stack import Layer, surveyed
from kairosbuild.boot.survey import hidden_links
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import UNLOCKED, Input, Known, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import load
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, flag, record, refs, text, textmap, texts

_WHOLE = ("base", "dockerfile")
"""Kinds whose stack is theirs down to what other nodes brought before."""
_SEVERAL = (*_WHOLE, "packages")
"""Kinds that yield several layers, all of which are in an image that lists them."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What a container runtime is told."""

    env: Mapping[str, str] = textmap("Environment variables.", {})
    entrypoint: tuple[str, ...] = texts("The program that is always run.", ())
    cmd: tuple[str, ...] = texts("What is run by default, or the entrypoint's arguments.", ())
    user: str = text("Who runs it, as `user` or `uid:gid`.", "")
    workdir: str = text("The folder it runs in.", "", pattern="|/.*")
    labels: Mapping[str, str] = textmap("Labels of the image.", {})


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An operating system (or a container) as an OCI image."""

    layers: tuple[str, ...] = refs("The layers, bottom to top.", accepts=("layer",), least=1, names=True)
    config: ImageConfig = record("What a container runtime is told.", ImageConfig, ImageConfig())
    compression: str = choice(
        "How layers travel. Of zstd:chunked, podman fetches only files that it lacks.",
        ("gzip", "zstd", "zstd:chunked"),
        "gzip",
    )
    several_kernels: bool = flag("Allow more than one kernel; no disk can be made of such an image.")


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    layer: Layer


class Image:
    """See the module."""

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = ImageSpec
    produces: ClassVar[str] = "image"

    def tools(self, spec: ImageSpec) -> tuple[str, ...]:
        """depmod is in `image`."""
        return ("image",)

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """Each layer stands above those it was built on, and only once."""
        layers = declaration.refs.get("layers", ())
        for number, layer in enumerate(layers):
            if layer in layers[:number]:
                yield "layers", f"{layer!r} stands there twice", "name each layer once"
            if (one := declarations.get(layer)) is None or one.kind in _WHOLE:
                continue
            for below in one.refs.get("on", ()):
                if below not in layers[:number]:
                    yield (
                        "layers",
                        f"{layer!r} was built on {below!r}, which is not below it",
                        f"list {below!r} before it",
                    )
        yield from kernel_complaints(declaration, declarations)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules without a signature, for a kernel that is there already and takes none such."""
        yield from foreseen_in_image(declaration, declarations, known)

    def lock(self, spec: ImageSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Check the stack, settle it, write it down."""
        layers = _stacked(task)
        _refuse_hidden_links(task, layers)
        _refuse_kernels(task, layers)
        if layer := settled(task, [one.layer for one in layers]):
            layers.append(_Named("settle", layer))
        spec: ImageSpec = task.spec
        document = {
            "schema": 1,
            "platform": task.platform,
            "epoch": task.epoch,
            "compression": spec.compression,
            "layers": [
                {"name": one.name, "layer": one.layer.ref.layer.json(), "index": one.layer.ref.index.json()}
                for one in layers
            ],
            "config": _joined(_inherited(task), _config(spec.config)),
        }
        if boot := _boot(task):
            document["boot"] = boot
        if refused := _locked_out(task):
            document["unsigned"] = refused
        return {"image": task.put_bytes(dumps(document))}


def _refuse_kernels(task: Task, layers: Sequence[_Named]) -> None:
    """What only the built layers tell: several kernels (a base may bring one), modules nobody signed."""
    problems: list[KbuildError] = []
    kernels = sorted({version for one in layers for version in one.layer.survey.kernels})
    if len(kernels) > 1 and not task.spec.several_kernels:
        problems.append(
            InputError(
                f"{task.name}: there are {len(kernels)} kernels in its layers: {', '.join(kernels)}",
                reason="image-kernels",
                hint="take one out, or set several_kernels: true",
            )
        )
    forcing = [one.name for one in _having(task, "abi") if _document(task, one, "abi")["forced"]]
    if forcing:
        problems += [
            unsigned(task.name, name, forcing[0], modules) for name, modules in _unsigned(task).items()
        ]
    raise_problems(problems)


def _unsigned(task: Task) -> dict[str, list[str]]:
    """Its drivers' modules that nobody signed, by the names of their nodes."""
    found = {
        one.name: [m["name"] for m in _document(task, one, "drivers")["modules"] if not m["signed"]]
        for one in _having(task, "drivers")
    }
    return {name: modules for name, modules in found.items() if modules}


def _locked_out(task: Task) -> dict[str, Any]:
    """The modules that its kernel refuses under Secure Boot, for artifacts that are signed; {} when there are none."""
    kernels = [one.name for one in _having(task, "kernel") if "lockdown" in _document(task, one, "kernel")]
    found = _unsigned(task) if kernels else {}
    return {"kernel": kernels[0], "modules": found} if found else {}


def _boot(task: Task) -> dict[str, list[str]]:
    """What its kernels and drivers say of how it is started, in their order; {} when they say nothing."""
    found: dict[str, list[str]] = {"cmdline": [], "early": []}
    for one in _having(task, "boot"):
        for what, words in _document(task, one, "boot").items():
            found[what] += [word for word in words if word not in found[what]]
    return found if any(found.values()) else {}


def _having(task: Task, output: str) -> list[Input]:
    return [one for one in task.inputs["layers"] if output in one.outputs]


def _document(task: Task, one: Input, output: str) -> Any:
    return loads(task.path(one.outputs[output]).read_bytes())


def _stacked(task: Task) -> list[_Named]:
    """The layers of all inputs, each above what it was built on. Raises `image-stack`."""
    found: list[_Named] = []
    problems: list[KbuildError] = []
    for one in task.inputs["layers"]:
        stack = load(task.path(one.outputs["stack"]).read_bytes())
        below = stack[:-1]
        if one.kind in _SEVERAL:
            there = {other.layer.ref for other in found}
            found += [_named(task, one, ref) for ref in below if ref not in there]
        if not _within(below, [other.layer.ref for other in found]):
            problems.append(
                InputError(
                    f"{task.name}: {one.name!r} was built on layers that are not all below it, in that order",
                    reason="image-stack",
                    hint="list what it is built on before it",
                )
            )
        found.append(_named(task, one, stack[-1]))
    raise_problems(problems)
    return found


def _named(task: Task, one: Input, ref: LayerRef) -> _Named:
    return _Named(one.name, Layer(ref, surveyed(task, ref)))


def _within(some: Sequence[LayerRef], of: Sequence[LayerRef]) -> bool:
    """Whether these are all there, in their order."""
    rest = iter(of)
    return all(any(ref == other for other in rest) for ref in some)


def _refuse_hidden_links(task: Task, layers: Sequence[_Named]) -> None:
    raise_problems(
        [
            InputError(
                f"{task.name}: {layers[number].name!r} has a folder /{name}, a link in the layers below",
                reason="image-hides-link",
                hint=f"put its files where /{name} leads, usually /usr/{name}",
            )
            for number, name in hidden_links([one.layer.survey for one in layers])
        ]
    )


def _inherited(task: Task) -> dict[str, Any]:
    """What a Dockerfile among the inputs says of the container; the topmost one counts."""
    found: dict[str, Any] = {}
    for one in task.inputs["layers"]:
        if "config" in one.outputs:
            found = loads(task.path(one.outputs["config"]).read_bytes())
    return found


def _joined(below: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The image's own word over what it inherits; of variables and labels each by its name."""
    found = {**below, **own}
    if "Env" in below and "Env" in own:
        named = {pair.partition("=")[0]: pair for pair in (*below["Env"], *own["Env"])}
        found["Env"] = [named[name] for name in sorted(named)]
    if "Labels" in below and "Labels" in own:
        found["Labels"] = {**below["Labels"], **own["Labels"]}
    return found


def _config(config: ImageConfig) -> dict[str, Any]:
    """The `config` object of the OCI image configuration; what is empty is left out."""
    found: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in sorted(config.env.items())],
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "User": config.user,
        "WorkingDir": config.workdir,
        "Labels": dict(config.labels),
    }
    return {name: value for name, value in found.items() if value}
