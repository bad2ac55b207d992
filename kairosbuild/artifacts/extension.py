"""System and configuration extensions: part of a tree that systemd puts over a running system's /usr or /etc.

A disk image as <https://uapi-group.org/specifications/specs/discoverable_disk_image/> has it: an erofs with the
layers' own files of those folders, and its dm-verity tree in a partition of its own. What else the layers have
(a package database, for one) is left out: an extension cannot carry it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import os_release
from kairosbuild.artifacts.partitions import up
from kairosbuild.artifacts.stack import Sealed, seal, stack_of_image
from kairosbuild.boot import gpt
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import Outputs, Task
from kairosbuild.oci.entry import Entry, hidden_by, is_whiteout
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, Slice, write_layer
from kairosbuild.oci.merge import merge
from kairosbuild.recipe.fields import ref, refs, text


@dataclass(frozen=True, slots=True)
class Extension:
    """What kind of extension: its word, the folders it may hold, where it says what it fits."""

    what: str
    folders: tuple[str, ...]
    release: str


SYSEXT = Extension("sysext", ("usr", "opt"), "usr/lib/extension-release.d/extension-release.")
CONFEXT = Extension("confext", ("etc",), "etc/extension-release.d/extension-release.")


@dataclass(frozen=True, slots=True)
class ExtensionSpec:
    """An extension of a running system."""

    layers: tuple[str, ...] = refs(
        "The layers it is made of; only their own files count, not those of what they were built on.",
        accepts=("layer",),
        least=1,
    )
    image: str = ref("The image it extends: it fits this system and version only.", "", accepts=("image",))
    entry: str = text("Its name.", "extension", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def build(task: Task, extension: Extension) -> Outputs:
    """The extension as an image with two partitions. Raises `extension-empty`, `extension-whiteout`."""
    spec: ExtensionSpec = task.spec
    sealed = seal(task, _layer(task, extension), [], "zstd,3")
    made = _disk(task, sealed)
    root_hash = sealed.verity.root_hash
    files = (
        File(f"{spec.entry}.raw", extension.what, made),
        File(f"{spec.entry}.roothash", "roothash", task.put_bytes(root_hash.encode() + b"\n")),
    )
    described = document(extension.what, files, {"root-hash": root_hash})
    return {"file": made, "artifact": task.put_bytes(described)}


def _layer(task: Task, extension: Extension) -> Blob:
    """The layers' own files of the extension's folders as one layer, with what says which system it fits."""
    own = [LayerRef(one.outputs["layer"], one.outputs["index"]) for one in task.inputs["layers"]]
    stack = [(task.path(one.layer), Index.loads(task.path(one.index).read_bytes())) for one in own]
    _refuse_whiteouts(task, extension, [index for _, index in stack])
    whole, path = task.scratch / "own.tar", task.scratch / "extension.tar"
    with whole.open("xb") as out:
        rows = merge(stack, out, task.epoch)
    with whole.open("rb") as tar, path.open("xb") as out:
        items = list(_inside(task, extension, Index.loads(rows), tar.fileno()))
        write_layer([*items, _release(task, extension)], out, task.epoch)
    return task.put_file(path)


def _inside(task: Task, extension: Extension, index: Index, tar: int) -> Iterator[Item]:
    """What lies in the extension's folders; what does not is noted."""
    left: dict[str, None] = {}
    found = False
    for path in index.paths():
        place = index[path]
        if path.partition("/")[0] not in extension.folders:
            left[path.partition("/")[0]] = None
            continue
        found = found or place.entry.type != "dir"
        yield place.entry, Slice(tar, place.data) if place.entry.type == "file" else None
    if not found:
        raise InputError(
            f"{task.name}: its layers have nothing in /{' or /'.join(extension.folders)}",
            reason="extension-empty",
            hint=f"they have {', '.join('/' + name for name in left) or 'nothing'}",
        )
    if left:
        task.note(
            f"left out, since no {extension.what} can hold it: {', '.join('/' + name for name in left)}"
        )


def _refuse_whiteouts(task: Task, extension: Extension, indexes: Sequence[Index]) -> None:
    for index in indexes:
        for path in index.paths():
            if is_whiteout(path) and path.partition("/")[0] in extension.folders:
                raise InputError(
                    f"{task.name}: its layers remove {hidden_by(path)!r}, and a {extension.what} can only add",
                    reason="extension-whiteout",
                )


def _release(task: Task, extension: Extension) -> Item:
    """The file that says what it fits: the image's system and version, or any."""
    lines = ["ID=_any"]
    if task.inputs.get("image"):
        stack = stack_of_image(task)
        release = _fields(os_release(task, stack).decode())
        lines = [f"{key}={release[key]}" for key in ("ID", "VERSION_ID", "SYSEXT_LEVEL") if key in release]
    data = "".join(f"{line}\n" for line in [*lines, "ARCHITECTURE=x86-64"]).encode()
    return Entry(f"{extension.release}{task.spec.entry}", "file", 0o644, size=len(data)), data


def _fields(release: str) -> Mapping[str, str]:
    """The assignments of an os-release file, quotes kept."""
    found = (line.partition("=") for line in release.splitlines() if "=" in line and not line.startswith("#"))
    return {key: value for key, _, value in found}


def _disk(task: Task, sealed: Sealed) -> Blob:
    """Two partitions out of one boot form, named by halves of the root hash as discovery wants it."""
    root, form = bytes.fromhex(sealed.verity.root_hash), task.path(sealed.blob)
    data = Part(form, 0, sealed.verity.hash_offset)
    tree = Part(form, sealed.verity.hash_offset, sealed.blob.size - sealed.verity.hash_offset)
    first, second = uuid.UUID(bytes=root[:16]), uuid.UUID(bytes=root[16:])
    at = gpt.ALIGN + up(data.size)
    partitions = (
        gpt.Partition(gpt.ROOT_X86_64, first, "root", gpt.ALIGN, up(data.size)),
        gpt.Partition(gpt.ROOT_VERITY_X86_64, second, "root-verity", at, up(tree.size)),
    )
    disk = Sparse(at + up(tree.size) + gpt.ALIGN)
    disk.add_all(0, gpt.build(disk.size, uuid.uuid5(first, "disk"), partitions))
    disk.add(partitions[0].start, data)
    disk.add(partitions[1].start, tree)
    disk.write_raw(task.scratch / "extension")
    return task.put_file(task.scratch / "extension")
