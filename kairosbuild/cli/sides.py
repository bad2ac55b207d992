"""The two sides of `kbuild diff`: a recipe (built first), a published reference, or a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.proof.diff import Side
from kairosbuild.proof.view import Layer, View

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.oci.chunks import Chunk
    from kairosbuild.registry.manifests import Image
    from kairosbuild.registry.target import Descriptor, Target

_USUAL = "linux/amd64"
_SCRIPT = ".ipxe"  # what a boot server hands out: it has the command line
_LATEST = (1 << 32) - 1  # no date is clamped: it is a stranger's layer that is looked at


def platforms(parts: Parts, name: str) -> tuple[str, ...]:
    """The platforms of a reference that has several, none for anything else."""
    from kairosbuild.registry.manifests import platforms_of

    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return ()
    target, version = parts.registries.open(name)
    return platforms_of(target.get_manifest(version), target.name)


def platform_of(parts: Parts, name: str) -> str:
    """The platform of a side that has one, "" where that is not known."""
    from kairosbuild.registry.manifests import resolve
    from kairosbuild.registry.platforms import platform_of

    if name.endswith((".yaml", ".yml")):
        return parts.recipe().platform
    with suppress(KbuildError):
        target, version = parts.registries.open(name)
        return "/".join(platform_of(target, resolve(target, version, _USUAL)).values())
    return ""


def side(parts: Parts, arguments: argparse.Namespace, name: str, platform: str = "") -> Side:
    """What a word of the command line means, on this platform where it has several."""
    if name.endswith((".yaml", ".yml")):
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
    """The image of a recipe, its artifacts, and the command line of its UKI."""
    from kairosbuild.cli.proofs import image_layers
    from kairosbuild.cli.publishing import package_of
    from kairosbuild.core.canonical import loads
    from kairosbuild.registry.manifests import read_image

    asked = parts.arguments.nodes or outcome.publish.targets or outcome.names()
    there = [node for node in asked if outcome.has(node)]
    kinds: dict[str, list[str]] = {
        kind: [node for node in there if kind in outcome.outputs(node)]
        for kind in ("image", "artifact", "uki")
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
    for node in kinds["artifact"]:
        parts.bring([outcome.outputs(node)["artifact"]])
        document = loads(parts.store.cas.read(outcome.outputs(node)["artifact"]))
        files |= {file["title"]: (file["digest"], file["size"]) for file in document["files"]}
    ukis = [outcome.outputs(node)["uki"] for node in kinds["uki"]]
    scripts = [Blob(*blob) for title, blob in files.items() if title.endswith(_SCRIPT)]
    parts.bring([*ukis, *scripts])
    return Side(name, view, layers, files, _said(parts, ukis, scripts), {**pieces, **_listed(parts, files)})


# -- a reference -----------------------------------------------------------------------------------


def _of_reference(parts: Parts, name: str, platform: str) -> Side:
    """An image with the artifacts published beside it; or an artifact, with the image that it is about."""
    from kairosbuild.registry.manifests import read_image, resolve, subject_of

    target, version = parts.registries.open(name)
    image = resolve(target, version, platform)
    if not image.artifact_type:
        base = _of_image(parts, target, image, name)
        files, line, pieces = _beside(parts, target, image, version)
        return Side(name, base.view, base.layers, files, line, {**base.pieces, **pieces})
    subject = subject_of(image.manifest)
    below = read_image(target.get_manifest(subject), target.name) if subject else None
    base = _of_image(parts, target, below, name) if below else Side(name)
    files, line, pieces = _artifact(parts, target, image)
    return Side(name, base.view, base.layers, files, line, {**base.pieces, **pieces})


_Artifact = tuple[dict[str, tuple[str, int]], str | None, dict[str, Mapping[str, int]]]
"""Files by title, the command line when one of them has it, and the chunks that are listed."""


def _beside(parts: Parts, target: Target, image: Image, version: str) -> _Artifact:
    """What `_artifact` says of those that `TAG-…` names and that are about the image."""
    from kairosbuild.registry.manifests import is_index, read_image, subject_of

    files: dict[str, tuple[str, int]] = {}
    pieces: dict[str, Mapping[str, int]] = {}
    said: str | None = None
    for tag in target.tags() if version and ":" not in version else ():
        manifest = target.get_manifest(tag) if tag.startswith(f"{version}-") else None
        if manifest is None or is_index(manifest) or subject_of(manifest) != image.digest:
            continue
        found, line, parted = _artifact(parts, target, read_image(manifest, target.name))
        files, pieces, said = {**files, **found}, {**pieces, **parted}, line or said
    return files, said, pieces


def _artifact(parts: Parts, target: Target, image: Image) -> _Artifact:
    """What is known of an artifact without fetching it; of a UKI or a boot server's script, by fetching that."""
    from kairosbuild.oci import chunks
    from kairosbuild.registry.delta import lists_of
    from kairosbuild.registry.fetch import download
    from kairosbuild.registry.target import TITLE

    files = {
        one.annotations.get(TITLE, one.blob.digest): (one.blob.digest, one.blob.size) for one in image.layers
    }
    ukis, scripts = (
        [Blob(*blob) for title, blob in files.items() if title.endswith(suffix)][:1]
        for suffix in (".efi", _SCRIPT)
    )
    download(target, [*ukis, *scripts], parts.store.cas, parts.events)
    sizes = dict(files.values())
    pieces: dict[str, Mapping[str, int]] = {}
    for digest, listing in lists_of(target, image.digest).items():
        with suppress(ValueError, KeyError):
            pieces[digest] = _by_name(chunks.loads(listing, sizes[digest]))
    return files, _said(parts, ukis, scripts), pieces


def _said(parts: Parts, ukis: Sequence[Blob], scripts: Sequence[Blob]) -> str | None:
    """The command line of a UKI, or else of what a boot server hands out; None where there is neither."""
    if ukis:
        return cmdline(parts.store.cas.read(ukis[0]))
    for script in scripts[:1]:
        text = parts.store.cas.read(script).decode("utf-8", "replace")
        words = next((line.split() for line in text.splitlines() if line.startswith("kernel ")), [])
        return " ".join(word for word in words[2:] if not word.startswith("initrd="))
    return None


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
    """A UKI, a tar of a root, or any file by its size."""
    from kairosbuild.core.digest import of_file

    blob = of_file(file)
    whole = {"file": (blob.digest, blob.size)}
    if file.suffix == ".efi":
        return Side(str(file), files=whole, cmdline=cmdline(file.read_bytes()))
    if ".tar" in file.suffixes or ".tgz" in file.suffixes:
        stored = parts.store.cas.add_copy(file)
        return Side(str(file), View([_layer(parts, stored, "tar")]), (("tar", blob.digest, blob.size),))
    return Side(str(file), files=whole)


def cmdline(image: bytes) -> str:
    """The command line of a UKI, "" for any other image."""
    import struct

    from kairosbuild.boot.uki import section

    try:
        return section(image, ".cmdline").rstrip(b"\0").decode("utf-8", "replace").strip()
    except (KeyError, KbuildError, struct.error):
        return ""
