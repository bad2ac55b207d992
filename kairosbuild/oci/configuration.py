"""An image's configuration (image-spec, config.md), made of its document. Its digest is the image's id."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import of_bytes


def configuration(document: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration. Every time in it is the epoch, so that equal layers make equal images."""
    system, architecture, *variant = document["platform"].split("/")
    created = rfc3339(document["epoch"])
    rows = document["layers"]
    return {
        "architecture": architecture,
        "os": system,
        **({"variant": variant[0]} if variant else {}),
        "created": created,
        "config": document["config"],
        "rootfs": {"type": "layers", "diff_ids": [row["layer"]["digest"] for row in rows]},
        "history": [{"created": created, "created_by": f"kbuild: {row['name']}"} for row in rows],
    }


def image_id(document: Mapping[str, Any]) -> str:
    """The digest of the configuration: the same however the layers travel."""
    return of_bytes(dumps(configuration(document))).digest


def rfc3339(epoch: int) -> str:
    """A time as annotations and configurations want it."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
