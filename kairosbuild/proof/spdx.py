"""An image's contents as SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>), the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from kairosbuild import __version__
from kairosbuild.proof import licences
from kairosbuild.proof.contents import Contents, LayerInfo
from kairosbuild.proof.packages import Package

MEDIA_TYPE = "application/spdx+json"
_ROOT = "SPDXRef-image"


def document(name: str, digest: str, contents: Contents, epoch: int) -> dict[str, Any]:
    """The SBOM of the manifest `digest`, published as `name`. The image holds layers, a layer its packages."""
    root = _root(name, digest, contents)
    layers = [_layer(number, one) for number, one in enumerate(contents.layers)]
    rows = [_package(one, contents) for one in contents.packages]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name or digest,
        "documentNamespace": f"urn:kairosbuild:spdx:{digest}",
        "creationInfo": {
            "created": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": [f"Tool: kairosbuild-{__version__}"],
        },
        "packages": [root, *layers, *rows],
        "hasExtractedLicensingInfos": _extracted(contents),
        "relationships": list(_relationships(contents)),
    }


def _root(name: str, digest: str, contents: Contents) -> dict[str, Any]:
    pretty = contents.system.get("PRETTY_NAME", "")
    return {
        **_common(_ROOT, name or digest, digest, digest),
        "primaryPackagePurpose": "OPERATING-SYSTEM" if pretty else "CONTAINER",
        **({"summary": pretty} if pretty else {}),
    }


def _layer(number: int, layer: LayerInfo) -> dict[str, Any]:
    return {
        **_common(_layer_id(number), layer.node, layer.digest, layer.digest),
        "primaryPackagePurpose": "ARCHIVE",
        "comment": f"layer {number} of the image, by the node {layer.node}: {layer.entries} entries",
    }


def _package(one: Package, contents: Contents) -> dict[str, Any]:
    purl = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": one.purl(contents.system),
    }
    return {
        **_common(_package_id(one), one.name, one.version, one.digest),
        "licenseDeclared": one.licence,
        "externalRefs": [purl],
        **({"sourceInfo": f"built from {one.source}"} if one.source else {}),
        **({"comment": f"brought by the node {one.node}"} if one.node else {}),
    }


def _common(ref: str, name: str, version: str, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "SPDXID": ref,
        "name": name,
        "versionInfo": version,
        "downloadLocation": licences.NONE,
        "filesAnalyzed": False,
        "licenseConcluded": licences.NONE,
        "licenseDeclared": licences.NONE,
        "copyrightText": licences.NONE,
        "supplier": licences.NONE,
    }
    if digest:
        found["checksums"] = [{"algorithm": "SHA256", "checksumValue": digest.removeprefix("sha256:")}]
    return found


def _relationships(contents: Contents) -> Iterator[dict[str, str]]:
    yield _related("SPDXRef-DOCUMENT", "DESCRIBES", _ROOT)
    place = {layer.node: _layer_id(number) for number, layer in enumerate(contents.layers)}
    for number in range(len(contents.layers)):
        yield _related(_ROOT, "CONTAINS", _layer_id(number))
    for one in contents.packages:
        yield _related(place.get(one.node, _ROOT), "CONTAINS", _package_id(one))


def _related(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _extracted(contents: Contents) -> list[dict[str, str]]:
    names = sorted({name for one in contents.packages for name in licences.references(one.licence)})
    return [
        {
            "licenseId": name,
            "name": name.removeprefix("LicenseRef-"),
            "extractedText": f"The package calls this licence {name.removeprefix('LicenseRef-')!r}; "
            "its text is in the package.",
        }
        for name in names
    ]


def _layer_id(number: int) -> str:
    return f"SPDXRef-layer-{number}"


def _package_id(one: Package) -> str:
    words = "-".join(filter(None, (one.type, one.name, one.version, one.arch)))
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", lambda m: f".{ord(m[0]):x}.", words)
