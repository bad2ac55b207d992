"""The two sides of `kbuild diff`: a recipe (built first), a published reference, or a file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.cli import given
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import HostError, InputError, KbuildError
from kairosbuild.proof.diff import Side
from kairosbuild.proof.view import Layer, View

if TYPE_CHECKING:
    from kairosbuild.boot.media import Read
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.oci.chunks import Chunk
    from kairosbuild.registry.manifests import Image
    from kairosbuild.registry.target import Descriptor, Target

_USUAL = "linux/amd64"
_SCRIPT = ".ipxe"  # what a boot server hands out: it has the command line
_STARTED = (".efi", ".raw", ".qcow2", ".vhd", ".vmdk", ".iso", _SCRIPT, ".tar.gz")
"""What may have a command line in it; of several files the first sort that has one counts, on both sides."""
_MOST = 64 << 10  # bytes of such a script
_LATEST = (1 << 32) - 1  # no date is clamped: it is a stranger's layer that is looked at


def platforms(parts: Parts, name: str) -> tuple[str, ...]:
    """The platforms of a reference that has several, none for anything else."""
    from kairosbuild.registry.manifests import platforms_of

    if given.names_recipe(name) or Path(name).is_file():
        return ()
    if name.startswith(("/", "./", "../")):
        raise InputError(f"{name}: there is no such file", reason="no-such-file")
    target, version = parts.registries.open(name)
    return platforms_of(target.get_manifest(version), target.name)


def platform_of(parts: Parts, name: str) -> str:
    """The platform of a side that has one, "" where that is not known."""
    from kairosbuild.registry.manifests import resolve
    from kairosbuild.registry.platforms import platform_of

    if given.names_recipe(name):
        return parts.recipe().platform
    with suppress(KbuildError):
        target, version = parts.registries.open(name)
        return "/".join(platform_of(target, resolve(target, version, _USUAL)).values())
    return ""


def side(parts: Parts, arguments: argparse.Namespace, name: str, platform: str = "") -> Side:
    """What a word of the command line means, on this platform where it has several."""
    if given.names_recipe(name):
        return _of_recipe(arguments, name)
    if Path(name).is_file():
        return _of_file(parts, Path(name))
    return _of_reference(parts, name, platform or _USUAL)


# -- a recipe --------------------------------------------------------------------------------------


def _of_recipe(arguments: argparse.Namespace, name: str) -> Side:
    from kairosbuild.cli.running import running
    from kairosbuild.execute.engine import evaluate

    said = copy(arguments)
    said.recipe, said.nodes = name, list(arguments.node or ())
    with running(said) as parts:
        outcome = evaluate(parts.request(), parts.wiring(), parts.events)
        for problem in outcome.failed.values():
            raise problem
        if outcome.interrupted:
            raise KeyboardInterrupt
        return _of_outcome(parts, outcome, name)


def _of_outcome(parts: Parts, outcome: Any, name: str) -> Side:
    """The image of a recipe, its artifacts, and the command line that they start with."""
    from kairosbuild.cli.proofs import image_layers
    from kairosbuild.cli.publishing import package_of
    from kairosbuild.core.canonical import loads
    from kairosbuild.registry.manifests import read_image

    asked = parts.arguments.nodes or outcome.publish.targets or outcome.names()
    there = [node for node in asked if outcome.has(node)]
    kinds: dict[str, list[str]] = {
        kind: [node for node in there if kind in outcome.outputs(node)] for kind in ("image", "artifact")
    }
    if not kinds["image"] and not kinds["artifact"]:
        raise InputError(
            f"{name} makes no image that could be compared", reason="diff-nothing", hint="--node NODE"
        )
    view = View(())
    layers: tuple[tuple[str, str, int], ...] = ()
    pieces: dict[str, Mapping[str, int]] = {}
    for node in kinds["image"][:1]:
        parts.bring([outcome.outputs(node)["image"]])
        document = loads(parts.store.cas.read(outcome.outputs(node)["image"]))
        view = View(list(image_layers(parts, document)))
        sent = read_image(package_of(parts, outcome, node).manifest, node).layers
        rows = zip(view.layers, sent, strict=True)
        layers = tuple((layer.node, one.blob.digest, one.blob.size) for layer, one in rows)
        pieces = _pieces(parts, sent)
    files: dict[str, tuple[str, int]] = {}
    started: dict[str, Blob] = {}
    for node in kinds["artifact"]:
        outputs = outcome.outputs(node)
        parts.bring([outputs["artifact"]])
        document = loads(parts.store.cas.read(outputs["artifact"]))
        made = {file["title"]: (file["digest"], file["size"]) for file in document["files"]}
        files |= made
        started |= {title: outputs.get("uki", Blob(*blob)) for title, blob in made.items()}
    line = _line(started, lambda blob: _stored(parts, blob))
    return Side(name, view, layers, files, line, {**pieces, **_listed(parts, files)})


# -- a reference -----------------------------------------------------------------------------------


def _of_reference(parts: Parts, name: str, platform: str) -> Side:
    """An image with the artifacts published beside it; or an artifact, with the image that it is about."""
    from kairosbuild.registry.manifests import read_image, resolve, subject_of

    target, version = parts.registries.open(name)
    image = resolve(target, version, platform)
    if not image.artifact_type:
        base = _of_image(parts, target, image, name)
        files, pieces = _beside(target, image, version)
        line = _published_line(parts, target, files)
        return Side(name, base.view, base.layers, files, line, {**base.pieces, **pieces})
    subject = subject_of(image.manifest)
    below = read_image(target.get_manifest(subject), target.name) if subject else None
    base = _of_image(parts, target, below, name) if below else Side(name)
    files, pieces = _artifact(target, image)
    line = _published_line(parts, target, files)
    return Side(name, base.view, base.layers, files, line, {**base.pieces, **pieces})


_Artifact = tuple[dict[str, tuple[str, int]], dict[str, Mapping[str, int]]]
"""Files by title, and the chunks that are listed."""


def _beside(target: Target, image: Image, version: str) -> _Artifact:
    """What `_artifact` says of those that `TAG-…` names and that are about the image."""
    from kairosbuild.registry.manifests import is_index, read_image, subject_of

    files: dict[str, tuple[str, int]] = {}
    pieces: dict[str, Mapping[str, int]] = {}
    for tag in target.tags() if version and ":" not in version else ():
        manifest = target.get_manifest(tag) if tag.startswith(f"{version}-") else None
        if manifest is None or is_index(manifest) or subject_of(manifest) != image.digest:
            continue
        found, parted = _artifact(target, read_image(manifest, target.name))
        files, pieces = {**files, **found}, {**pieces, **parted}
    return files, pieces


def _artifact(target: Target, image: Image) -> _Artifact:
    """What is known of an artifact without fetching it."""
    from kairosbuild.oci import chunks
    from kairosbuild.registry.delta import lists_of
    from kairosbuild.registry.target import TITLE

    files = {
        one.annotations.get(TITLE, one.blob.digest): (one.blob.digest, one.blob.size) for one in image.layers
    }
    sizes = dict(files.values())
    pieces: dict[str, Mapping[str, int]] = {}
    for digest, listing in lists_of(target, image.digest).items():
        with suppress(ValueError, KeyError):
            pieces[digest] = _by_name(chunks.loads(listing, sizes[digest]))
    return files, pieces


def _published_line(parts: Parts, target: Target, files: Mapping[str, tuple[str, int]]) -> str | None:
    """The command line of published files: by ranges, and only where there are none by fetching a file."""
    from kairosbuild.registry.fetch import download

    def reader(blob: Blob) -> Read:
        def read(offset: int, length: int) -> bytes:
            end = min(offset + length, blob.size)
            return target.read_range(blob, offset, end) if offset < end else b""

        try:
            read(0, 1)
        except HostError as problem:
            if problem.reason != "registry-no-ranges":
                raise
            download(target, [blob], parts.store.cas, parts.events)
            return _stored(parts, blob)
        return read

    return _line({title: Blob(*blob) for title, blob in files.items()}, reader)


# -- command lines ---------------------------------------------------------------------------------


def _line(files: Mapping[str, Blob], reader: Callable[[Blob], Read]) -> str | None:
    """The command line in these files, None where there is none to be read."""
    from kairosbuild.boot import media

    for suffix in _STARTED:
        for title in sorted(one for one in files if one.endswith(suffix)):
            read = reader(files[title])
            line = _of_script(read(0, _MOST)) if suffix == _SCRIPT else media.cmdline(read)
            if line is not None:
                return line
    return None


def _of_script(script: bytes) -> str | None:
    """What a boot server's script gives the kernel, but for where the initrd is."""
    words = (line.split() for line in script.decode("utf-8", "replace").splitlines())
    said = next((line[2:] for line in words if line[:1] == ["kernel"]), None)
    return None if said is None else " ".join(word for word in said if not word.startswith("initrd="))


def _stored(parts: Parts, blob: Blob) -> Read:
    parts.bring([blob])
    return _of_path(parts.store.cas.path(blob.digest))


def _of_path(file: Path) -> Read:
    def read(offset: int, length: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    return read


def _pieces(parts: Parts, layers: Sequence[Descriptor]) -> dict[str, Mapping[str, int]]:
    """What layers that are had file by file are made of."""
    from kairosbuild.oci import chunked

    found: dict[str, Mapping[str, int]] = {}
    for one in layers:
        if one.annotations:
            parts.bring([one.blob])
            with suppress(ValueError, KeyError, TypeError):
                found[one.blob.digest] = chunked.pieces(
                    parts.store.cas.path(one.blob.digest), one.annotations
                )
    return found


def _listed(parts: Parts, files: Mapping[str, tuple[str, int]]) -> dict[str, Mapping[str, int]]:
    """The chunks of a build's large files, as they are listed when they are published."""
    from kairosbuild.cli.transport import lister
    from kairosbuild.oci import chunks
    from kairosbuild.registry.delta import LARGE

    of = lister(parts)
    large = {Blob(*blob) for blob in files.values() if blob[1] >= LARGE}
    return {blob.digest: _by_name(chunks.loads(of(blob), blob.size)) for blob in sorted(large)}


def _by_name(some: Iterable[Chunk]) -> dict[str, int]:
    return {one.sha256.hex(): one.size for one in some}


def _of_image(parts: Parts, target: Target, image: Image, name: str) -> Side:
    import json

    from kairosbuild.registry.fetch import download

    cas = parts.store.cas
    download(target, image.blobs, cas, parts.events)
    try:
        history = json.loads(cas.read(image.config.blob)).get("history", [])
        made = [str(one.get("created_by", "")) for one in history if not one.get("empty_layer")]
    except (ValueError, AttributeError):
        made = []
    nodes = [text.removeprefix("kbuild: ") if text.startswith("kbuild: ") else "" for text in made]
    nodes = nodes if len(nodes) == len(image.layers) else [""] * len(image.layers)
    nodes = [node or f"layer {number}" for number, node in enumerate(nodes)]
    layers = [_layer(parts, one.blob, node) for one, node in zip(image.layers, nodes, strict=True)]
    rows = tuple(
        (node, one.blob.digest, one.blob.size) for one, node in zip(image.layers, nodes, strict=True)
    )
    return Side(name, View(layers), rows, pieces=_pieces(parts, image.layers))


def _layer(parts: Parts, blob: Blob, node: str) -> Layer:
    """A layer out of what travels, made once and remembered."""
    from kairosbuild.execute.derive import derive
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.reader import normalise

    cas = parts.store.cas

    def make() -> dict[str, Blob]:
        scratch = cas.tmp()
        with cas.path(blob.digest).open("rb") as stream, (scratch / "layer").open("wb") as out:
            index = normalise(stream, out, _LATEST, scratch=scratch)
        return {"layer": cas.put_file(scratch / "layer"), "index": cas.put_bytes(index)}

    made = derive(parts.store, parts.results, "foreign-layer", 1, {"transport": blob.digest}, make)
    parts.bring(made.values())
    layer = made["layer"]
    return Layer(node, layer.digest, layer.size, cas.path(layer.digest), Index.loads(cas.read(made["index"])))


# -- a file ----------------------------------------------------------------------------------------


def _of_file(parts: Parts, file: Path) -> Side:
    """A tar of a root; or any file by its size, a UKI, a disk or an ISO by its command line too."""
    from kairosbuild.boot import media
    from kairosbuild.core.digest import of_file

    blob = of_file(file)
    if ".tar" in file.suffixes or ".tgz" in file.suffixes:
        stored = parts.store.cas.add_copy(file)
        return Side(str(file), View([_layer(parts, stored, "tar")]), (("tar", blob.digest, blob.size),))
    whole = {"file": (blob.digest, blob.size)}
    return Side(str(file), files=whole, cmdline=media.cmdline(_of_path(file)))
