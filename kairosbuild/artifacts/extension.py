"""System and configuration extensions: part of a tree that systemd puts over a running system's /usr or /etc.

A disk image as <https://uapi-group.org/specifications/specs/discoverable_disk_image/> has it: an erofs with the
layers' own files of those folders, its dm-verity tree in a partition of its own and, where it is signed, its root
hash with a signature in a third. What else the layers have (a package database, for one) is left out: an extension
cannot carry it.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import os_release
from kairosbuild.artifacts.partitions import up
from kairosbuild.artifacts.signing import signs_as
from kairosbuild.artifacts.stack import Sealed, seal, stack_of_image
from kairosbuild.boot import gpt
from kairosbuild.boot.sparse import Part, Sparse
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError
from kairosbuild.graph.action import LayerRef
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.keys import cms
from kairosbuild.keys.certificate import Certificate
from kairosbuild.keys.keys import Signer
from kairosbuild.oci.entry import Entry, hidden_by, is_whiteout
from kairosbuild.oci.index import Index
from kairosbuild.oci.layer import Item, Slice, write_layer
from kairosbuild.oci.merge import merge
from kairosbuild.recipe.fields import record, ref, refs, source, text

_MODULE = re.compile(r"(?:usr/)?lib/modules/([^/]+)/.*\.ko(?:\.xz|\.zst|\.gz)?")
_UNIT = re.compile(r"(?:usr/lib|etc)/systemd/system/[^/]+")


@dataclass(frozen=True, slots=True)
class Extension:
    """What kind of extension: its word, the folders it may hold, where it says what it fits."""

    what: str
    folders: tuple[str, ...]
    release: str


SYSEXT = Extension("sysext", ("usr", "opt"), "usr/lib/extension-release.d/extension-release.")
CONFEXT = Extension("confext", ("etc",), "etc/extension-release.d/extension-release.")


@dataclass(frozen=True, slots=True)
class VeritySignSpec:
    """A signature of the root hash, inside the image."""

    certificate: str = source(
        "The certificate (PEM) that machines have in /etc/verity.d or /usr/lib/verity.d."
    )
    key: str = text(
        "Its private key, when there is something to sign: a file, `env://NAME` or `pkcs11:…`. In no key of a "
        "node, no log and no layer.",
        "",
        hint=True,
    )


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
    sign: VeritySignSpec | None = record(
        "Sign it, for machines that take nothing else.", VeritySignSpec, None
    )


class ExtensionKind:
    """What the two kinds of extensions have in common: all but which `extension` they are."""

    Spec: ClassVar[type] = ExtensionSpec
    produces: ClassVar[str] = "file"
    extension: ClassVar[Extension]

    def tools(self, spec: ExtensionSpec) -> tuple[str, ...]:
        """mkfs.erofs."""
        return ("image",)

    def lock(self, spec: ExtensionSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """The extension as an image."""
        return build(task, self.extension)


def build(task: Task, extension: Extension) -> Outputs:
    """The extension as an image with two partitions. Raises `extension-empty`, `extension-whiteout`."""
    spec: ExtensionSpec = task.spec
    signs = signs_as(task, spec.sign.certificate, spec.sign.key) if spec.sign else None
    layer, kernels = _layer(task, extension)
    sealed = seal(task, layer, [], "zstd,3")
    made = _disk(task, sealed, signs)
    root_hash = sealed.verity.root_hash
    files = (
        File(f"{spec.entry}.raw", extension.what, made),
        File(f"{spec.entry}.roothash", "roothash", task.put_bytes(root_hash.encode() + b"\n")),
    )
    about = {"root-hash": root_hash, **({"kernels": " ".join(kernels)} if kernels else {})}
    described = document(extension.what, files, about)
    return {"file": made, "artifact": task.put_bytes(described)}


def _layer(task: Task, extension: Extension) -> tuple[Blob, list[str]]:
    """The layers' own files of the extension's folders as one layer, with what says which system it fits.

    Beside it the versions of the kernels that it has modules of.
    """
    own = [LayerRef(one.outputs["layer"], one.outputs["index"]) for one in task.inputs["layers"]]
    stack = [(task.path(one.layer), Index.loads(task.path(one.index).read_bytes())) for one in own]
    _refuse_whiteouts(task, extension, [index for _, index in stack])
    whole, path = task.scratch / "own.tar", task.scratch / "extension.tar"
    with whole.open("xb") as out:
        rows = merge(stack, out, task.epoch)
    with whole.open("rb") as tar, path.open("xb") as out:
        items = list(_inside(task, extension, Index.loads(rows), tar.fileno()))
        paths = [entry.path for entry, _ in items]
        units = any(map(_UNIT.fullmatch, paths))
        write_layer([*items, _release(task, extension, units=units)], out, task.epoch)
    return task.put_file(path), sorted({found[1] for found in map(_MODULE.fullmatch, paths) if found})


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


def _release(task: Task, extension: Extension, *, units: bool) -> Item:
    """The file that says what it fits: the image's system and version, or any; units want systemd told of them."""
    lines = ["ID=_any"]
    if task.inputs.get("image"):
        stack = stack_of_image(task)
        release = _fields(os_release(task, stack).decode())
        lines = [f"{key}={release[key]}" for key in ("ID", "VERSION_ID", "SYSEXT_LEVEL") if key in release]
    lines += ["ARCHITECTURE=x86-64", *(["EXTENSION_RELOAD_MANAGER=1"] if units else [])]
    data = "".join(f"{line}\n" for line in lines).encode()
    return Entry(f"{extension.release}{task.spec.entry}", "file", 0o644, size=len(data)), data


def _fields(release: str) -> Mapping[str, str]:
    """The assignments of an os-release file, quotes kept."""
    found = (line.partition("=") for line in release.splitlines() if "=" in line and not line.startswith("#"))
    return {key: value for key, _, value in found}


def _disk(task: Task, sealed: Sealed, signs: tuple[Certificate, Signer] | None) -> Blob:
    """Partitions out of one boot form, named by halves of the root hash as discovery wants it."""
    root, form = bytes.fromhex(sealed.verity.root_hash), task.path(sealed.blob)
    data = Part(form, 0, sealed.verity.hash_offset)
    tree = Part(form, sealed.verity.hash_offset, sealed.blob.size - sealed.verity.hash_offset)
    first, second = uuid.UUID(bytes=root[:16]), uuid.UUID(bytes=root[16:])
    pieces: list[tuple[uuid.UUID, uuid.UUID, str, bytes | Part, int]] = [
        (gpt.ROOT_X86_64, first, "root", data, data.size),
        (gpt.ROOT_VERITY_X86_64, second, "root-verity", tree, tree.size),
    ]
    if signs:
        signature = _signature(sealed.verity.root_hash, *signs)
        third = uuid.uuid5(first, "signature")
        pieces.append((gpt.ROOT_VERITY_SIG_X86_64, third, "root-verity-sig", signature, len(signature)))
    at, partitions = gpt.ALIGN, []
    for kind, identity, name, _, size in pieces:
        partitions.append(gpt.Partition(kind, identity, name, at, up(size)))
        at += up(size)
    disk = Sparse(at + gpt.ALIGN)
    disk.add_all(0, gpt.build(disk.size, uuid.uuid5(first, "disk"), partitions))
    for partition, (*_, content, _) in zip(partitions, pieces, strict=True):
        disk.add(partition.start, content)
    disk.write_raw(task.scratch / "extension")
    return task.put_file(task.scratch / "extension")


def _signature(root_hash: str, certificate: Certificate, signer: Signer) -> bytes:
    """The document of a signature partition: the root hash, who signed it, PKCS#7 of its hex digits."""
    said = {
        "rootHash": root_hash,
        "certificateFingerprint": certificate.fingerprint,
        "signature": base64.b64encode(cms.detached(root_hash.encode(), certificate, signer)).decode(),
    }
    text = json.dumps(said).encode()
    return text + bytes(-len(text) % 4096)
