"""The two sides of `kbuild diff`: a recipe (built first), a published reference, or a file."""

from __future__ import annotations

import argparse
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.proof.diff import Side
from kairosbuild.proof.view import Layer, View

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.registry.manifests import Image
    from kairosbuild.registry.target import Target

_LATEST = (1 << 32) - 1  # no date is clamped: it is a stranger's layer that is looked at


def side(parts: Parts, arguments: argparse.Namespace, name: str) -> Side:
    """What a word of the command line means."""
    if name.endswith((".yaml", ".yml")):
        return _of_recipe(arguments, name)
    if Path(name).is_file():
        return _of_file(parts, Path(name))
    return _of_reference(parts, name)


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
    for node in kinds["image"][:1]:
        parts.bring([outcome.outputs(node)["image"]])
        document = loads(parts.store.cas.read(outcome.outputs(node)["image"]))
        view = View(list(image_layers(parts, document)))
        sent = read_image(package_of(parts, outcome, node).manifest, node).layers
        rows = zip(view.layers, sent, strict=True)
        layers = tuple((layer.node, one.blob.digest, one.blob.size) for layer, one in rows)
    files: dict[str, tuple[str, int]] = {}
    for node in kinds["artifact"]:
        parts.bring([outcome.outputs(node)["artifact"]])
        document = loads(parts.store.cas.read(outcome.outputs(node)["artifact"]))
        files |= {file["title"]: (file["digest"], file["size"]) for file in document["files"]}
    ukis = [outcome.outputs(node)["uki"] for node in kinds["uki"]]
    parts.bring(ukis)
    return Side(name, view, layers, files, cmdline(parts.store.cas.read(ukis[0])) if ukis else None)


# -- a reference -----------------------------------------------------------------------------------


def _of_reference(parts: Parts, name: str) -> Side:
    """An image with the artifacts published beside it; or an artifact, with the image that it is about."""
    from kairosbuild.registry.manifests import read_image, resolve, subject_of

    target, version = parts.registries.open(name)
    image = resolve(target, version, "linux/amd64")
    if not image.artifact_type:
        base = _of_image(parts, target, image, name)
        return Side(name, base.view, base.layers, *_beside(parts, target, image, version))
    subject = subject_of(image.manifest)
    below = read_image(target.get_manifest(subject), target.name) if subject else None
    base = _of_image(parts, target, below, name) if below else Side(name)
    return Side(name, base.view, base.layers, *_artifact(parts, target, image))


def _beside(
    parts: Parts, target: Target, image: Image, version: str
) -> tuple[dict[str, tuple[str, int]], str | None]:
    """What `_artifact` says of those that `TAG-…` names and that are about the image."""
    from kairosbuild.registry.manifests import is_index, read_image, subject_of

    files: dict[str, tuple[str, int]] = {}
    said: str | None = None
    for tag in target.tags() if version and ":" not in version else ():
        manifest = target.get_manifest(tag) if tag.startswith(f"{version}-") else None
        if manifest is None or is_index(manifest) or subject_of(manifest) != image.digest:
            continue
        found, cmdline = _artifact(parts, target, read_image(manifest, target.name))
        files |= found
        said = cmdline or said
    return files, said


def _artifact(parts: Parts, target: Target, image: Image) -> tuple[dict[str, tuple[str, int]], str | None]:
    """An artifact's files by title, and the command line when one of them is a UKI."""
    from kairosbuild.registry.fetch import download
    from kairosbuild.registry.target import TITLE

    files = {
        one.annotations.get(TITLE, one.blob.digest): (one.blob.digest, one.blob.size) for one in image.layers
    }
    ukis = [Blob(*blob) for title, blob in files.items() if title.endswith(".efi")]
    download(target, ukis[:1], parts.store.cas, parts.events)
    return files, cmdline(parts.store.cas.read(ukis[0])) if ukis else None


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
    return Side(name, View(layers), rows)


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
