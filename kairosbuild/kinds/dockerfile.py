"""Kind `dockerfile`: a Dockerfile built by buildah over nodes and pinned images; each of its layers is ours.

buildah runs in the sandbox, without network, out of a pinned tools tree. What FROM and `COPY --from` name is a
node of `on` (by the node's name), an image of `images` (as it is written there), a stage, or `scratch`; nothing
else can be had. Of the context only what COPY, ADD and bind mounts name is there at all, so it alone is in the key.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError, Origin, nearest
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Input, Locked, Locker, Material, Outputs, Reads, Task
from kairosbuild.graph.stack import dump, stack_of
from kairosbuild.recipe.fields import refs, source, text, textmap, texts
from kairosbuild.sources.containerfile import Containerfile, ignored, matcher, parse

_OCI = "application/vnd.oci.image"
_LAYER = f"{_OCI}.layer.v1.tar"
_CONFIG = ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels")
_BUILD = (
    *(
        "--isolation",
        "chroot",
        "--network",
        "host",
        "--uts",
        "host",
        "--no-hosts",
        "--no-hostname",
        "--dns",
        "none",
    ),
    *("--pull=never", "--layers", "--identity-label=false", "--format", "oci"),
)


@dataclass(frozen=True, slots=True)
class DockerfileSpec:
    """A Dockerfile and what it may use."""

    file: str = source("The Dockerfile.", example="docker/Dockerfile")
    context: str = source("The folder that COPY and ADD read; `.dockerignore` in it is honoured.", "")
    on: tuple[str, ...] = refs(
        "Nodes that FROM and `COPY --from` name, by their names in the recipe.",
        (),
        accepts=("layer", "image"),
        names=True,
    )
    images: tuple[str, ...] = texts(
        "Images of registries that the Dockerfile names, written as there; the lock pins them.",
        (),
        example="docker.io/library/golang:1.25",
    )
    target: str = text("The stage to build; the last by default.", "")
    args: Mapping[str, str] = textmap("Build arguments.", {})


@dataclass(frozen=True, slots=True)
class _Image:
    """What a name in the Dockerfile stands for: layers, and a configuration of its own."""

    layers: tuple[LayerRef, ...]
    config: Mapping[str, Any]


class Dockerfile:
    """See the module."""

    name: ClassVar[str] = "dockerfile"
    every_owner: ClassVar[bool] = True
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = DockerfileSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: DockerfileSpec) -> tuple[str, ...]:
        """buildah."""
        return ("buildah",)

    def reads(self, spec: DockerfileSpec, role: str, sources: Mapping[str, Path]) -> Reads | None:
        """Of the context what the Dockerfile takes from it and .dockerignore leaves in it."""
        if role != "context":
            return None
        context, file = sources["context"], sources["file"]
        lists = (file.with_name(file.name + ".dockerignore"), context / ".dockerignore")
        left_out = ignored(next((one.read_text() for one in lists if one.is_file()), ""))
        try:
            patterns = parse(file.read_text(), spec.args, spec.target, spec.file).reads()
        except (InputError, OSError):  # the build says what is wrong with it
            patterns = None
        wanted = matcher((".",) if patterns is None else patterns)
        return Reads(
            lambda path, folder: wanted(path, folder) and (folder or not left_out(path)),
            tuple(map(str, (file, file.parent, *lists))),
        )

    def lock(self, spec: DockerfileSpec, locker: Locker) -> Locked:
        """Each image's manifest, configuration and layers."""
        from kairosbuild.sources.images import resolve

        found: dict[str, Any] = {}
        materials: list[Material] = []
        for image in spec.images:
            one = resolve(_full(image), locker.platform, locker.fetch)
            found[image] = {
                "manifest": one.manifest,
                "config": one.config.json(),
                "layers": [blob.json() for blob in one.layers],
            }
            materials += [
                Material(f"{one.place}@{blob.digest}", blob.digest, blob.size)
                for blob in (one.config, *one.layers)
            ]
        return Locked({"images": found} if found else {}, tuple(dict.fromkeys(materials)))

    def build(self, task: Task) -> Outputs:
        """Give buildah what the Dockerfile names, and keep the layers it adds."""
        spec: DockerfileSpec = task.spec
        parsed = parse(task.source_path("file", "").read_text(), spec.args, spec.target, spec.file)
        images = _images(task, parsed)
        document = _built(task, parsed, images)
        base = images[parsed.base()].layers if parsed.base() in images else ()
        layers = [*base, *_normalised(task, document.layers[len(base) :])]
        if len(layers) == len(base):
            layers.append(_layer(task, None))
        return {
            "layer": layers[-1].layer,
            "index": layers[-1].index,
            "stack": task.put_bytes(dump(layers)),
            "config": task.put_bytes(dumps(document.config)),
        }


@dataclass(frozen=True, slots=True)
class _Result:
    """What buildah made: paths of its layers' files, None for those it was given, and the configuration."""

    layers: Sequence[Path | None]
    config: Mapping[str, Any]


def _images(task: Task, parsed: Containerfile) -> dict[str, _Image]:
    """What every name in the Dockerfile stands for. Raises `dockerfile-image` for one that nothing provides."""
    nodes = {one.name: one for one in task.inputs.get("on", ())}
    locked = task.locked.data.get("images", {})
    found: dict[str, _Image] = {}
    for named in parsed.images:
        if named.image in nodes:
            found[named.image] = _of_node(task, nodes[named.image])
        elif named.image in locked:
            found[named.image] = _of_registry(task, locked[named.image])
        else:
            near = nearest(named.image, [*nodes, *locked])
            raise InputError(
                f"{task.name}: the Dockerfile names {named.image!r}, which no node of `on` and no image of `images` is",
                reason="dockerfile-image",
                hint=near or f"list it: `images: [{named.image}]`, or a node of that name under `on`",
                origin=Origin(task.spec.file, named.line, 1),
            )
    return found


def _of_node(task: Task, node: Input) -> _Image:
    if "image" in node.outputs:
        image = loads(task.path(node.outputs["image"]).read_bytes())
        layers = tuple(LayerRef(Blob(**one["layer"]), Blob(**one["index"])) for one in image["layers"])
        return _Image(layers, image["config"])
    config = loads(task.path(node.outputs["config"]).read_bytes()) if "config" in node.outputs else {}
    return _Image(stack_of(task, (node,)), config)


def _of_registry(task: Task, locked: Mapping[str, Any]) -> _Image:
    config = json.loads(task.path(Blob(**locked["config"])).read_bytes()).get("config") or {}
    layers = _normalised(task, [task.path(Blob(**one)) for one in locked["layers"]])
    return _Image(tuple(layers), {name: config[name] for name in _CONFIG if config.get(name)})


def _normalised(task: Task, tars: Sequence[Path | None]) -> list[LayerRef]:
    return [_layer(task, tar) for tar in tars]


def _layer(task: Task, tar: Path | None) -> LayerRef:
    """A foreign layer as a canonical one; without one, a layer of nothing."""
    from kairosbuild.oci.layer import write_layer
    from kairosbuild.oci.reader import normalise

    made = task.scratch / "layer.tar"
    with made.open("wb") as out:
        if tar is None:
            index = write_layer([], out, task.epoch)
        else:
            with tar.open("rb") as stream:
                index = normalise(stream, out, task.epoch, scratch=task.scratch)
    return LayerRef(task.put_file(made), task.put_bytes(index))


def _built(task: Task, parsed: Containerfile, images: Mapping[str, _Image]) -> _Result:
    """Run buildah."""
    spec: DockerfileSpec = task.spec
    layout, known = _layout(task, list(images.values()))
    words = [f"--timestamp={task.epoch}", f"--platform={task.platform}", *_BUILD]
    for number, name in enumerate(images):
        words += ["--build-context", f"{name}=container-image://localhost/kbuild-{number}"]
    for name, value in spec.args.items():
        words += ["--build-arg", f"{name}={value}"]
    if spec.target:
        words += ["--target", spec.target]
    done = task.execute(
        Action(
            ("/bin/sh", "/in/build.sh", *sorted(known), "--", *words),
            (task.tools("buildah"),),
            {
                **layout,
                "build.sh": task.put_bytes(Path(__file__).with_suffix(".sh").read_bytes()),
                "Dockerfile": _only(task, "file"),
                "context.tar": _context(task),
                "policy.json": task.put_bytes(dumps({"default": [{"type": "insecureAcceptAnything"}]})),
            },
            ("image.tar",),
            env={"IMAGES": str(len(images))},
            cwd="/",
            layer=True,
            drop=("*",),
            platform=task.platform,
        )
    )
    return _unpacked(task, task.path(done.outputs["image.tar"]))


def _only(task: Task, role: str) -> Blob:
    (file,) = task.sources[role]
    if file.blob is None:
        raise InputError(f"{task.name}: {role} is no file", reason="dockerfile-file")
    return file.blob


def _context(task: Task) -> Blob:
    """The context as a tar, as git would have it: exec bits and links, and the epoch for every time."""
    from kairosbuild.oci.entry import Entry
    from kairosbuild.oci.layer import Content, write_layer

    items: list[tuple[Entry, Content]] = []
    for file in task.sources.get("context", ()):
        if not file.logical:
            raise InputError(
                f"{task.name}: context is a file; a folder is expected", reason="dockerfile-context"
            )
        if file.type == "dir":
            items.append((Entry(file.logical, "dir", 0o755), None))
        elif file.type == "link":
            items.append((Entry(file.logical, "symlink", 0o777, target=file.target), None))
        elif file.blob:
            path = task.source_path("context", file.logical)
            items.append((Entry(file.logical, "file", file.mode, size=file.blob.size), path))
    made = task.scratch / "context.tar"
    with made.open("wb") as out:
        write_layer(items, out, task.epoch, flat_time=True)
    return task.put_file(made)


def _layout(task: Task, images: Sequence[_Image]) -> tuple[dict[str, Blob], set[str]]:
    """An OCI layout of these images by their numbers, as inputs; and the blobs (hex) that are layers of it."""
    put: dict[str, Blob] = {}
    layers: set[str] = set()

    def document(value: Mapping[str, Any]) -> Blob:
        blob = task.put_bytes(dumps(value))
        put[f"images/blobs/sha256/{blob.hex}"] = blob
        return blob

    system, machine = task.platform.split("/")[:2]
    manifests = []
    for number, image in enumerate(images):
        tars = [one.layer for one in image.layers]
        put |= {f"images/blobs/sha256/{tar.hex}": tar for tar in tars}
        layers |= {tar.hex for tar in tars}
        rootfs = {"type": "layers", "diff_ids": [tar.digest for tar in tars]}
        about = {"architecture": machine, "os": system, "config": image.config, "rootfs": rootfs}
        config = document(about)
        manifest = document(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": {"mediaType": f"{_OCI}.config.v1+json", **config.json()},
                "layers": [{"mediaType": _LAYER, **tar.json()} for tar in tars],
            }
        )
        names = {"org.opencontainers.image.ref.name": str(number)}
        manifests.append({"mediaType": f"{_OCI}.manifest.v1+json", **manifest.json(), "annotations": names})
    put["images/index.json"] = task.put_bytes(dumps({"schemaVersion": 2, "manifests": manifests}))
    put["images/oci-layout"] = task.put_bytes(dumps({"imageLayoutVersion": "1.0.0"}))
    return put, layers


def _unpacked(task: Task, archive: Path) -> _Result:
    """The layout that buildah left, less the blobs it was given."""
    with tarfile.open(archive) as tar:
        files = {member.name.removeprefix("./"): member for member in tar if member.isfile()}

        def read(name: str) -> bytes:
            stream = tar.extractfile(files[name])
            assert stream is not None, name
            return stream.read()

        def blob(descriptor: Mapping[str, Any]) -> str:
            return f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"

        try:
            (manifest,) = json.loads(read("index.json"))["manifests"]
            about = json.loads(read(blob(manifest)))
            config = json.loads(read(blob(about["config"]))).get("config") or {}
            layers: list[Path | None] = []
            for number, one in enumerate(about["layers"]):
                if blob(one) not in files:
                    layers.append(None)
                    continue
                layers.append(task.scratch / f"built-{number}")
                layers[-1].write_bytes(read(blob(one)))  # type: ignore[union-attr]
        except (KeyError, ValueError) as error:
            raise NodeError(
                f"{task.name}: what buildah left is no image: {error}", reason="dockerfile-result"
            ) from None
    return _Result(layers, {name: config[name] for name in _CONFIG if config.get(name)})


def _full(image: str) -> str:
    """A reference with its registry: a short name is Docker Hub's, as Dockerfiles have it."""
    if image.startswith("oci-layout:"):
        return image
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"
