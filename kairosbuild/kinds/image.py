"""Kind `image`: layers in their order, and a configuration, as one OCI image.

Nothing is copied: the image is a document that names the layers. What depends on the union of the layers
(module dependencies, the linker's cache) is settled here, in one small layer on top, made once for the layers
that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kairosbuild.artifacts.checks import kernel_complaints
from kairosbuild.boot.survey import VERSION as SURVEY_VERSION
from kairosbuild.boot.survey import Survey, hidden_links, survey
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import InputError, KbuildError, raise_problems
from kairosbuild.families.table import databases
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import UNLOCKED, Input, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import load
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import write_layer
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, flag, record, refs, text, textmap, texts

_DEPMOD = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.softdep",
    "modules.devname",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.weakdep",
)
_DEPMOD_SCRIPT = """
version=$1
shift
for layer in /in/*; do
    tar -x -f "$layer" -C /tmp --wildcards --no-same-owner "*lib/modules/$version/*" 2>/dev/null || true
    find /tmp -name '.wh.*' | while read -r mark; do
        rm -rf "${mark%.wh.*}${mark##*/.wh.}" "$mark"
    done
done
[ -e /tmp/lib ] || ln -s usr/lib /tmp/lib
depmod -b /tmp -o /out "$version"
cd "/out/lib/modules/$version"
for name; do [ -e "$name" ] || : > "$name"; done
"""
_WHOLE = ("base", "dockerfile")
"""Kinds whose stack is theirs down to what other nodes brought before."""
_SEVERAL = (*_WHOLE, "packages")
"""Kinds that yield several layers, all of which are in an image that lists them."""

_STAMP = (
    b"# Everything that follows an update of /usr was settled when the image was built.\nTIMESTAMP_NSEC=%d\n"
)


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
class _Layer:
    name: str
    ref: LayerRef
    survey: Survey


class Image:
    """See the module."""

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 1
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

    def lock(self, spec: ImageSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Check the stack, settle it, write it down."""
        layers = _stacked(task)
        _refuse_hidden_links(task, layers)
        _refuse_kernels(task, layers)
        if settled := _settle(task, layers):
            layers.append(settled)
        spec: ImageSpec = task.spec
        document = {
            "schema": 1,
            "platform": task.platform,
            "epoch": task.epoch,
            "compression": spec.compression,
            "layers": [
                {"name": one.name, "layer": one.ref.layer.json(), "index": one.ref.index.json()}
                for one in layers
            ],
            "config": _joined(_inherited(task), _config(spec.config)),
        }
        if boot := _boot(task):
            document["boot"] = boot
        return {"image": task.put_bytes(dumps(document))}


def _refuse_kernels(task: Task, layers: Sequence[_Layer]) -> None:
    """What only the built layers tell: several kernels (a base may bring one), modules nobody signed."""
    problems: list[KbuildError] = []
    kernels = sorted({version for one in layers for version in one.survey.kernels})
    if len(kernels) > 1 and not task.spec.several_kernels:
        problems.append(
            InputError(
                f"{task.name}: there are {len(kernels)} kernels in its layers: {', '.join(kernels)}",
                reason="image-kernels",
                hint="take one out, or set several_kernels: true",
            )
        )
    forcing = [one.name for one in _having(task, "abi") if _document(task, one, "abi")["forced"]]
    for one in _having(task, "drivers"):
        unsigned = [m["name"] for m in _document(task, one, "drivers")["modules"] if not m["signed"]]
        if forcing and unsigned:
            problems.append(
                InputError(
                    f"{task.name}: the modules {', '.join(unsigned)} of {one.name!r} have no signature, and the "
                    f"kernel of {forcing[0]!r} takes none without (CONFIG_MODULE_SIG_FORCE)",
                    reason="image-unsigned",
                    hint=f"list a node of kind sign-modules of {one.name!r} instead",
                )
            )
    raise_problems(problems)


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


def _stacked(task: Task) -> list[_Layer]:
    """The layers of all inputs, each above what it was built on. Raises `image-stack`."""
    found: list[_Layer] = []
    problems: list[KbuildError] = []
    for one in task.inputs["layers"]:
        stack = load(task.path(one.outputs["stack"]).read_bytes())
        below = stack[:-1]
        if one.kind in _SEVERAL:
            there = {layer.ref for layer in found}
            found += [_Layer(one.name, ref, _surveyed(task, ref)) for ref in below if ref not in there]
        if not _within(below, [layer.ref for layer in found]):
            problems.append(
                InputError(
                    f"{task.name}: {one.name!r} was built on layers that are not all below it, in that order",
                    reason="image-stack",
                    hint="list what it is built on before it",
                )
            )
        found.append(_Layer(one.name, stack[-1], _surveyed(task, stack[-1])))
    raise_problems(problems)
    return found


def _within(some: Sequence[LayerRef], of: Sequence[LayerRef]) -> bool:
    """Whether these are all there, in their order."""
    rest = iter(of)
    return all(any(ref == other for other in rest) for ref in some)


def _surveyed(task: Task, ref: LayerRef) -> Survey:
    def make() -> Outputs:
        return {
            "survey": task.put_bytes(
                dumps(survey(Index.loads(task.path(ref.index).read_bytes()), databases()).json())
            )
        }

    found = task.derive(
        "layer-survey", SURVEY_VERSION, {"index": ref.index.digest, "databases": databases()}, make
    )
    return Survey(**loads(task.path(found["survey"]).read_bytes()))


def _refuse_hidden_links(task: Task, layers: Sequence[_Layer]) -> None:
    raise_problems(
        [
            InputError(
                f"{task.name}: {layers[number].name!r} has a folder /{name}, a link in the layers below",
                reason="image-hides-link",
                hint=f"put its files where /{name} leads, usually /usr/{name}",
            )
            for number, name in hidden_links([one.survey for one in layers])
        ]
    )


def _settle(task: Task, layers: Sequence[_Layer]) -> _Layer | None:
    """The layer of what depends on more than one layer, None when every layer is settled as it is."""
    files: dict[str, Any] = {}
    for version in sorted({v for one in layers for v in one.survey.modules}):
        if holders := _unsettled_modules(layers, version):
            files |= _depmod(task, version, holders)
    if holders := _unsettled_libraries(layers):
        files |= _ldconfig(task, holders)
    if _update_is_done(layers):
        files |= {
            f"{place}/.updated": task.put_bytes(_STAMP % (task.epoch * 10**9)) for place in ("etc", "var")
        }
    if not files:
        return None
    return _layer_of(task, files)


def _unsettled_modules(layers: Sequence[_Layer], version: str) -> list[_Layer]:
    """The layers with modules of this kernel, unless the topmost of them brings their dependencies."""
    holders = [one for one in layers if version in one.survey.modules]
    last = layers.index(holders[-1])
    settled = len(holders) == 1 and any(version in one.survey.depmod for one in layers[last:])
    return [] if settled else holders


def _depmod(task: Task, version: str, holders: Sequence[_Layer]) -> Outputs:
    """depmod's files for the union of these layers, and of nothing else."""
    tools = task.tools("image")
    layers = [one.ref.layer for one in holders]

    def make() -> Outputs:
        done = task.execute(
            Action(
                ("/bin/sh", "-euc", _DEPMOD_SCRIPT, "sh", version, *_DEPMOD),
                (tools,),
                {f"{number:03}": layer for number, layer in enumerate(layers)},
                tuple(f"lib/modules/{version}/{name}" for name in _DEPMOD),
                platform=task.platform,
            )
        )
        return {f"{prefix}{path}": blob for path, blob in done.outputs.items() if blob.size}

    prefix = "" if any(_has_lib(one.survey) for one in holders) else "usr/"
    preimage = {"version": version, "layers": [one.digest for one in layers], "tools": tools.digest}
    return task.derive("settle-depmod", 1, preimage | ({} if prefix else {"lib": "lib"}), make)


def _has_lib(one: Survey) -> bool:
    """Whether /lib is a folder there, as on a distribution without merged /usr."""
    return one.top.get("lib") == "d" or any(path.partition("/")[0] == "lib" for path in one.implied)


def _unsettled_libraries(layers: Sequence[_Layer]) -> list[_Layer]:
    """All layers up to the last with libraries, when it lies above the linker's cache and there is one."""
    cached = max((n for n, one in enumerate(layers) if one.survey.library_cache), default=None)
    holders = [n for n, one in enumerate(layers) if one.survey.libraries]
    if cached is None or not holders or holders[-1] <= cached:
        return []
    return list(layers[: holders[-1] + 1])


def _ldconfig(task: Task, holders: Sequence[_Layer]) -> Outputs:
    layers = [one.ref.layer for one in holders]

    def make() -> Outputs:
        done = task.execute(
            Action(
                ("/bin/sh", "-euc", "/sbin/ldconfig -X -C /out/ld.so.cache"),
                tuple(layers),
                outputs=("ld.so.cache",),
                platform=task.platform,
            )
        )
        return {"etc/ld.so.cache": done.outputs["ld.so.cache"]}

    return task.derive("settle-ldconfig", 1, {"layers": [one.digest for one in layers]}, make)


def _update_is_done(layers: Sequence[_Layer]) -> bool:
    """Whether package scripts settled all that systemd would settle at the first start after an update."""
    installed = max((n for n, one in enumerate(layers) if one.survey.packages), default=-1)
    return any(one.survey.systemd for one in layers) and not any(
        one.survey.pending for one in layers[installed + 1 :]
    )


def _layer_of(task: Task, files: Outputs) -> _Layer:
    """These files as the layer `settle`."""

    def make() -> Outputs:
        folders = {path[:at] for path in files for at, char in enumerate(path) if char == "/"}
        items = [(Entry(path, "dir", 0o755, mtime=task.epoch), None) for path in folders]
        tar = task.scratch / "settle.tar"
        with tar.open("wb") as out:
            index = write_layer(
                [
                    *items,
                    *(
                        (Entry(path, "file", 0o644, size=blob.size, mtime=task.epoch), task.path(blob))
                        for path, blob in files.items()
                    ),
                ],
                out,
                task.epoch,
            )
        return {"layer": task.put_file(tar), "index": task.put_bytes(index)}

    preimage = {"epoch": task.epoch, "files": {path: blob.digest for path, blob in files.items()}}
    made = task.derive("settle-layer", 1, preimage, make)
    ref = LayerRef(made["layer"], made["index"])
    return _Layer("settle", ref, _surveyed(task, ref))


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
