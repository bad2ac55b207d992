"""The layers of an image as a machine mounts them: each in its boot form, made once whatever artifacts list it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kairosbuild.boot import layerfs
from kairosbuild.boot.files import Files
from kairosbuild.boot.survey import VERSION as SURVEY_VERSION
from kairosbuild.boot.survey import Survey, survey, visible
from kairosbuild.boot.verity import Verity
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.families.table import databases
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Outputs, Task
from kairosbuild.oci.index import Index


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and what is known of it."""

    ref: LayerRef
    survey: Survey


@dataclass(frozen=True, slots=True)
class Sealed:
    """The boot form of a layer: erofs with its dm-verity tree."""

    blob: Blob
    verity: Verity


@dataclass(frozen=True, slots=True)
class Kernel:
    """The number of the layer that holds it, its version, and its path there."""

    layer: int
    version: str
    path: str


class Stack:
    """The layers of an image, bottom to top, without those that an opaque root hides."""

    def __init__(self, task: Task, image: Mapping[str, Any]) -> None:
        self.task = task
        boot = image.get("boot", {})
        self.cmdline: tuple[str, ...] = tuple(boot.get("cmdline", ()))
        """Arguments that the image's own kernel is always started with."""
        self.early: tuple[str, ...] = tuple(boot.get("early", ()))
        """Modules that its kernel and drivers want loaded before there is a root."""
        self.document = image
        refs = [LayerRef(Blob(**one["layer"]), Blob(**one["index"])) for one in image["layers"]]
        surveys = [surveyed(task, one) for one in refs]
        lowest = visible(surveys)
        self.layers = [Layer(one, facts) for one, facts in zip(refs[lowest:], surveys[lowest:], strict=True)]

    @property
    def surveys(self) -> list[Survey]:
        """What is known of each layer."""
        return [one.survey for one in self.layers]

    @cached_property
    def sealed(self) -> list[Sealed]:
        """The boot form of each layer."""
        return [self._seal(number) for number in range(len(self.layers))]

    @property
    def forms(self) -> dict[str, Blob]:
        """The boot forms by the name a machine looks for: the root hash."""
        return {one.verity.root_hash: one.blob for one in self.sealed}

    @cached_property
    def kernel(self) -> Kernel:
        """The one kernel. Raises `disk-kernel`."""
        found = {
            version: Kernel(number, version, path)
            for number, one in enumerate(self.surveys)
            for version, path in one.kernels.items()
        }
        if len(found) != 1:
            which = ", ".join(sorted(found)) or "none"
            raise InputError(
                f"{self.task.name}: what boots needs exactly one kernel in its image, and there is {which}",
                reason="disk-kernel",
                hint="the image lists one node of kind kernel",
            )
        return next(iter(found.values()))

    @cached_property
    def compression(self) -> str:
        """How boot forms are packed: what the kernel's own configuration says it can read."""
        kernel = self.kernel
        holder = self.layers[kernel.layer].ref
        places = [f"{kernel.path.rpartition('/')[0]}/config", f"boot/config-{kernel.version}"]

        def make() -> Outputs:
            files = Files([_readable(self.task, holder)])
            config = next((text for place in places if (text := files.read(place)) is not None), b"")
            return {"compression": self.task.put_bytes(layerfs.compression(config).encode())}

        preimage = {"layer": holder.layer.digest, "places": places}
        made = self.task.derive("boot-form-compression", layerfs.COMPRESSION_VERSION, preimage, make)
        return self.task.path(made["compression"]).read_bytes().decode()

    def file(self, number: int, path: str) -> Blob:
        """One file of one layer as a blob of its own."""
        task, layer = self.task, self.layers[number].ref

        def make() -> Outputs:
            content = Files([_readable(task, layer)]).read(path)
            assert content is not None, "the survey named it"
            return {"file": task.put_bytes(content)}

        return task.derive("layer-file", 1, {"layer": layer.layer.digest, "path": path}, make)["file"]

    def holders(self, version: str) -> list[LayerRef]:
        """The layers that have modules of this kernel."""
        return [one.ref for one in self.layers if version in one.survey.modules]

    def files(self, layers: Sequence[LayerRef]) -> Files:
        """What these layers show at a path."""
        return Files([_readable(self.task, one) for one in layers])

    @cached_property
    def indexes(self) -> list[Index]:
        """Every layer's index; read only when one is needed."""
        return [Index.loads(self.task.path(one.ref.index).read_bytes()) for one in self.layers]

    def _seal(self, number: int) -> Sealed:
        layer = self.layers[number].ref.layer
        return seal(self.task, layer, self._implied(number), self.compression)

    def _implied(self, number: int) -> list[layerfs.Folder]:
        """The folders a layer has no entry for, as the layers below have them."""
        wanted = self.layers[number].survey.implied
        below = self.indexes[:number] if wanted else []
        return [_folder(path, below) for path in wanted]


def seal(task: Task, layer: Blob, implied: Sequence[layerfs.Folder], compression: str) -> Sealed:
    """The boot form of a layer, made once for it and the folders it leaves to those below."""
    tools = task.tools("image")

    def make() -> Outputs:
        head = task.put_bytes(layerfs.folders(implied, task.epoch))
        done = task.execute(
            Action(
                layerfs.command(layer, task.epoch, compression),
                (tools,),
                {"folders": head, "layer": layer},
                ("layer",),
                platform=task.platform,
            )
        )
        copy = task.scratch / "sealed"
        found = layerfs.seal(task.path(done.outputs["layer"]), copy, layer)
        return {
            "form": task.put_file(copy),
            "verity": task.put_bytes(dumps({"root": found.root_hash, "offset": found.hash_offset})),
        }

    preimage = {
        "layer": layer.digest,
        "folders": [list(one) for one in implied],
        "compression": compression,
        "epoch": task.epoch,
        "tools": tools.digest,
    }
    made = task.derive("boot-form", layerfs.VERSION, preimage, make)
    facts = loads(task.path(made["verity"]).read_bytes())
    return Sealed(made["form"], Verity(facts["root"], facts["offset"]))


def stack_of_image(task: Task, role: str = "image") -> Stack:
    """The stack of the image that this role names, itself or by a node of kind boot."""
    outputs = task.inputs[role][0].outputs
    return Stack(task, loads(task.path(outputs.get("image") or outputs["of"]).read_bytes()))


def _folder(path: str, below: Sequence[Index]) -> layerfs.Folder:
    for index in reversed(below):
        if (found := index.get(path)) and found.entry.type == "dir":
            return path, found.entry.mode, found.entry.uid, found.entry.gid
    return path, 0o755, 0, 0


def _readable(task: Task, layer: LayerRef) -> tuple[Path, Index]:
    return task.path(layer.layer), Index.loads(task.path(layer.index).read_bytes())


def surveyed(task: Task, layer: LayerRef) -> Survey:
    """What is known of a layer, found once for it."""

    def make() -> Outputs:
        return {
            "survey": task.put_bytes(
                dumps(survey(Index.loads(task.path(layer.index).read_bytes()), databases()).json())
            )
        }

    found = task.derive(
        "layer-survey", SURVEY_VERSION, {"index": layer.index.digest, "databases": databases()}, make
    )
    return Survey(**loads(task.path(found["survey"]).read_bytes()))
