"""An image's contents as CycloneDX 1.6 (<https://cyclonedx.org/docs/1.6/json/>), the same bytes every time."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from kairosbuild import __version__
from kairosbuild.proof import licences
from kairosbuild.proof.contents import Contents, LayerInfo
from kairosbuild.proof.packages import Package

MEDIA_TYPE = "application/vnd.cyclonedx+json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:kairosbuild:cyclonedx")


def document(name: str, digest: str, contents: Contents, epoch: int) -> dict[str, Any]:
    """The BOM of the manifest `digest`, published as `name`."""
    layers = {layer.node: f"layer:{number}" for number, layer in enumerate(contents.layers)}
    held: dict[str, list[str]] = {ref: [] for ref in (digest, *layers.values())}
    for one in contents.packages:
        held[layers.get(one.node, digest)].append(_ref(one, contents))
    held[digest] += [f"layer:{number}" for number in range(len(contents.layers))]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "kairosbuild", "version": __version__}]},
            "component": _root(name, digest, contents),
        },
        "components": [
            *(_layer(number, one) for number, one in enumerate(contents.layers)),
            *(_package(one, contents) for one in contents.packages),
        ],
        "dependencies": [{"ref": ref, "dependsOn": sorted(refs)} for ref, refs in sorted(held.items())],
    }


def _root(name: str, digest: str, contents: Contents) -> dict[str, Any]:
    pretty = contents.system.get("PRETTY_NAME", "")
    return {
        "type": "operating-system" if pretty else "container",
        "bom-ref": digest,
        "name": name or digest,
        "version": digest,
        "hashes": _hashes(digest),
        **({"description": pretty} if pretty else {}),
    }


def _layer(number: int, layer: LayerInfo) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"layer:{number}",
        "name": layer.node,
        "version": layer.digest,
        "hashes": _hashes(layer.digest),
        "properties": [
            {"name": "kairosbuild:node", "value": layer.node},
            {"name": "kairosbuild:entries", "value": str(layer.entries)},
        ],
    }


def _package(one: Package, contents: Contents) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": _ref(one, contents),
        "name": one.name,
        "version": one.version,
        "purl": one.purl(contents.system),
        **({"hashes": _hashes(one.digest)} if one.digest else {}),
        **({"licenses": [{"expression": one.licence}]} if one.licence != licences.NONE else {}),
        **({"properties": [{"name": "kairosbuild:node", "value": one.node}]} if one.node else {}),
    }


def _ref(one: Package, contents: Contents) -> str:
    return one.purl(contents.system)


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
