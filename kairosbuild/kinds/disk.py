"""Kind `disk`: an image as a bootable disk whose root is the stack of the image's own layers.

GPT with an EFI system partition (systemd-boot and a unified kernel image) and a `layers` filesystem, which
holds each layer's boot form under its root hash. Only mkfs.erofs, for a layer that is new, runs in the
sandbox; all else is computed here, so that a changed file costs little more than writing the disk.
docs/boot.md says why.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from kairosbuild.boot import ext4, fat, gpt, initrd, layerfs, qcow2, uki
from kairosbuild.boot.files import Files, index_of
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.boot.survey import VERSION as SURVEY_VERSION
from kairosbuild.boot.survey import Survey, cuts, survey, visible
from kairosbuild.boot.verity import Verity
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.oci.index import Index
from kairosbuild.recipe.fields import choice, integer, ref, size, text, texts

MIB = 1 << 20
CONSOLE = ("console=tty0", "console=ttyS0,115200")
_HEADROOM = 64 * MIB
_EFI = "usr/lib/systemd/boot/efi"
_LOADER = b"timeout 0\nconsole-mode keep\neditor no\n"
_IDENTITY = uuid.UUID("0f1f3b86-2d0a-4f0c-9d49-6b6275696c64")  # names that uuid5 derives from


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk for a machine with UEFI."""

    image: str = ref("The image it boots.", accepts=("image",))
    format: str = choice("How the disk is written.", ("raw", "qcow2"), "raw")
    esp_size: int = size("The EFI system partition; about 20 MiB for each version that is kept.", 128 * MIB)
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)
    entry: str = text("The boot entry's name.", "os", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
    tries: int = integer(
        "How often it may fail to start before the next entry has its turn; 0 is for ever.", 3, most=99
    )
    size: int = size(
        "The whole disk. By default as large as it needs: the EFI partition, and twice the layers with "
        "64 MiB more, so that a next version fits beside this one.",
        0,
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    ref: LayerRef
    survey: Survey


@dataclass(frozen=True, slots=True)
class _Sealed:
    blob: Blob
    verity: Verity


class Disk:
    """See the module."""

    name: ClassVar[str] = "disk"
    version: ClassVar[int] = 2
    Spec: ClassVar[type] = DiskSpec
    produces: ClassVar[str] = "disk"

    def tools(self, spec: DiskSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; boot loader, stub and what the initrd is made of."""
        return ("image", "boot")

    def lock(self, spec: DiskSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, assemble the UKI, lay out the disk, write it."""
        image = loads(task.path(task.inputs["image"][0].outputs["image"]).read_bytes())
        stack = _Stack(task, image)
        sealed = [stack.sealed(number) for number in range(len(stack.layers))]
        kernel = _kernel_image(task, stack, sealed)
        disk = _disk(task, sealed, kernel)
        made = _written(task, disk)
        return {
            "disk": made,
            "artifact": task.put_bytes(dumps(_artifact(task.spec, made))),
            "uki": task.put_bytes(kernel),
        }


class _Stack:
    """The layers of an image, bottom to top, without those that an opaque root hides."""

    def __init__(self, task: Task, image: Mapping[str, Any]) -> None:
        self.task = task
        refs = [LayerRef(Blob(**one["layer"]), Blob(**one["index"])) for one in image["layers"]]
        surveys = [_surveyed(task, one) for one in refs]
        lowest = visible(surveys)
        self.layers = [_Layer(one, facts) for one, facts in zip(refs[lowest:], surveys[lowest:], strict=True)]

    @property
    def surveys(self) -> list[Survey]:
        """What is known of each layer."""
        return [one.survey for one in self.layers]

    def sealed(self, number: int) -> _Sealed:
        """The boot form of a layer, made once for it and the folders it leaves to those below."""
        task, layer = self.task, self.layers[number].ref.layer
        tools, implied = task.tools("image"), self._implied(number)

        def make() -> Outputs:
            head = task.put_bytes(layerfs.folders(implied, task.epoch))
            done = task.execute(
                Action(
                    layerfs.command(layer, task.epoch),
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
            "epoch": task.epoch,
            "tools": tools.digest,
        }
        made = task.derive("boot-form", layerfs.VERSION, preimage, make)
        facts = loads(task.path(made["verity"]).read_bytes())
        return _Sealed(made["form"], Verity(facts["root"], facts["offset"]))

    def _implied(self, number: int) -> list[layerfs.Folder]:
        """The folders a layer has no entry for, as the layers below have them."""
        wanted = self.layers[number].survey.implied
        below = self.indexes[:number] if wanted else []
        return [_folder(path, below) for path in wanted]

    @cached_property
    def indexes(self) -> list[Index]:
        """Every layer's index; read only when one is needed."""
        return [Index.loads(self.task.path(one.ref.index).read_bytes()) for one in self.layers]

    def file(self, number: int, path: str) -> Blob:
        """One file of one layer as a blob of its own."""
        task, layer = self.task, self.layers[number].ref

        def make() -> Outputs:
            content = Files([_readable(task, layer)]).read(path)
            assert content is not None, "the survey named it"
            return {"file": task.put_bytes(content)}

        return task.derive("layer-file", 1, {"layer": layer.layer.digest, "path": path}, make)["file"]


def _folder(path: str, below: Sequence[Index]) -> layerfs.Folder:
    for index in reversed(below):
        if (found := index.get(path)) and found.entry.type == "dir":
            return path, found.entry.mode, found.entry.uid, found.entry.gid
    return path, 0o755, 0, 0


def _readable(task: Task, layer: LayerRef) -> tuple[Path, Index]:
    return task.path(layer.layer), Index.loads(task.path(layer.index).read_bytes())


def _surveyed(task: Task, layer: LayerRef) -> Survey:
    def make() -> Outputs:
        return {
            "survey": task.put_bytes(dumps(survey(Index.loads(task.path(layer.index).read_bytes())).json()))
        }

    found = task.derive("layer-survey", SURVEY_VERSION, {"index": layer.index.digest}, make)
    return Survey(**loads(task.path(found["survey"]).read_bytes()))


# -- the boot entry ------------------------------------------------------------------------------


def _kernel_image(task: Task, stack: _Stack, sealed: Sequence[_Sealed]) -> bytes:
    """The UKI, whose command line says which layers are the root."""
    number, version, path = _kernel(task, stack)
    found = layerfs.arguments([one.verity for one in reversed(sealed)], cuts(stack.surveys))
    release = next(
        (
            stack.file(n, one.os_release)
            for n, one in reversed(list(enumerate(stack.surveys)))
            if one.os_release
        ),
        None,
    )
    return uki.assemble(
        task.path(_loader(task)["stub"]).read_bytes(),
        os_release=task.path(release).read_bytes() if release else b"ID=linux\n",
        cmdline=" ".join((*found, "panic=5", *task.spec.cmdline)),
        uname=version,
        initrd=task.path(_initrd(task, stack, version)).read_bytes(),
        kernel=task.path(stack.file(number, path)).read_bytes(),
    )


def _kernel(task: Task, stack: _Stack) -> tuple[int, str, str]:
    """The layer, version and path of the one kernel. Raises `disk-kernel`."""
    found = {
        version: (number, version, path)
        for number, one in enumerate(stack.surveys)
        for version, path in one.kernels.items()
    }
    if len(found) != 1:
        which = ", ".join(sorted(found)) or "none"
        raise InputError(
            f"{task.name}: a disk needs exactly one kernel in its image, and there is {which}",
            reason="disk-kernel",
            hint="the image lists one node of kind kernel",
        )
    return next(iter(found.values()))


def _initrd(task: Task, stack: _Stack, version: str) -> Blob:
    """The initrd for this kernel, made once for the layers that have its modules."""
    tools, packing = task.tools("boot"), task.tools("image")
    holders = [one.ref for one in stack.layers if version in one.survey.modules]

    def make() -> Outputs:
        kernel = Files([_readable(task, one) for one in holders])
        archive = task.put_bytes(initrd.build(_tree(task, tools).read, kernel, version))
        packer = Action(initrd.COMPRESS, (packing,), {"initrd": archive}, ("initrd",), platform=task.platform)
        return task.execute(packer).outputs

    preimage = {
        "version": version,
        "layers": [one.layer.digest for one in holders],
        "tools": [tools.digest, packing.digest],
        "recipe": initrd.recipe(),
    }
    return task.derive("initrd", initrd.VERSION, preimage, make)["initrd"]


def _loader(task: Task) -> Outputs:
    """systemd's boot loader and stub, out of the tools tree."""
    tools = task.tools("boot")

    def make() -> Outputs:
        tree = _tree(task, tools)
        found = {
            "loader": tree.read(f"{_EFI}/systemd-bootx64.efi"),
            "stub": tree.read(f"{_EFI}/linuxx64.efi.stub"),
        }
        if missing := [name for name, content in found.items() if content is None]:
            raise NodeError(f"the tools tree `boot` has no {missing[0]}", reason="missing-tool")
        return {name: task.put_bytes(content) for name, content in found.items() if content is not None}

    return task.derive("boot-loader", 1, {"tools": tools.digest}, make)


def _tree(task: Task, tools: Blob) -> Files:
    tar = task.path(tools)
    return Files([(tar, index_of(tar))])


# -- the disk ------------------------------------------------------------------------------------


def _disk(task: Task, sealed: Sequence[_Sealed], kernel: bytes) -> Sparse:
    """Where everything goes. Raises `disk-size`, `fat-size`."""
    spec: DiskSpec = task.spec
    forms = {one.verity.root_hash: one.blob for one in sealed}
    layers_at = gpt.ALIGN + _up(spec.esp_size)
    total = _up(spec.size) or layers_at + _room(forms.values()) + gpt.ALIGN
    layers = gpt.Partition(
        gpt.LAYERS,
        _named("layers partition", forms),
        "kbuild-layers",
        layers_at,
        total - gpt.ALIGN - layers_at,
    )
    esp = gpt.Partition(gpt.ESP, _named("esp", forms), "esp", gpt.ALIGN, _up(spec.esp_size))
    if layers.size < 0:
        raise InputError(
            f"{task.name}: a disk of {spec.size} bytes has no room for layers",
            reason="disk-size",
            hint="raise size, or leave it out",
        )
    disk = Sparse(total)
    disk.add_all(0, gpt.build(total, _named("disk", forms), (esp, layers)))
    disk.add_all(esp.start, fat.build(_esp_volume(task, esp, forms), _esp_files(task, kernel)))
    _add_layers(task, disk, layers, forms)
    return disk


def _add_layers(task: Task, disk: Sparse, partition: gpt.Partition, forms: Mapping[str, Blob]) -> None:
    volume = ext4.Volume(partition.size, "kbuild-layers", _named("layers", forms), task.epoch)
    found = ext4.layout(volume, {name: blob.size for name, blob in forms.items()})
    disk.add_all(partition.start, found.metadata)
    for name, runs in found.files.items():
        at = 0
        for offset, length in runs:
            disk.add(partition.start + offset, Part(task.path(forms[name]), at, length))
            at += length


def _esp_volume(task: Task, esp: gpt.Partition, forms: Mapping[str, Blob]) -> fat.Volume:
    serial = _named("esp volume", forms).int & 0xFFFFFFFF
    return fat.Volume(esp.size, "ESP", serial, task.epoch, esp.start // gpt.SECTOR)


def _esp_files(task: Task, kernel: bytes) -> dict[str, bytes]:
    spec: DiskSpec = task.spec
    counter = f"+{spec.tries}" if spec.tries else ""
    return {
        "EFI/BOOT/BOOTX64.EFI": task.path(_loader(task)["loader"]).read_bytes(),
        f"EFI/Linux/{spec.entry}{counter}.efi": kernel,
        "loader/loader.conf": _LOADER,
    }


def _room(forms: Any) -> int:
    """A layers filesystem with space for a second version of everything."""
    return _up(2 * ext4.need([blob.size for blob in forms]) + _HEADROOM)


def _written(task: Task, disk: Sparse) -> Blob:
    """The disk in the store."""
    spec: DiskSpec = task.spec
    path = task.scratch / "disk"
    if spec.format == "raw":
        disk.write_raw(path)
    else:
        with path.open("xb") as out:
            qcow2.write(disk, out.write)
    return task.put_file(path)


def _artifact(spec: DiskSpec, disk: Blob) -> dict[str, Any]:
    """The document that a registry's manifest is made of."""
    file = {
        **disk.json(),
        "title": f"{spec.entry}.{spec.format}",
        "mediaType": f"application/vnd.kairosbuild.disk.{spec.format}",
    }
    return {
        "schema": 1,
        "artifactType": "application/vnd.kairosbuild.disk.v1",
        "files": [file],
        "annotations": {},
    }


def _named(what: str, forms: Mapping[str, Blob]) -> uuid.UUID:
    """An identity that follows from what is on the disk."""
    return uuid.uuid5(_IDENTITY, f"{what} {' '.join(sorted(forms))}")


def _up(number: int) -> int:
    return number + -number % MIB
