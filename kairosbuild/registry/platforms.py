"""One tag for several platforms: an index of images that were published one by one, each on its own machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kairosbuild.core import canonical
from kairosbuild.core.errors import InputError
from kairosbuild.registry.fetch import read
from kairosbuild.registry.manifests import Image, is_index, read_image
from kairosbuild.registry.target import INDEX, Manifest, Target


@dataclass(frozen=True, slots=True)
class Combined:
    """The index, and the image it has for each platform, by digest."""

    digest: str
    platforms: Mapping[str, str]


def combine(target: Target, tag: str, sources: Sequence[str], *, dry: bool = False) -> Combined:
    """Point a tag at an index of these images of the same repository, each under its own platform.

    Raises InputError `no-images`, `not-an-image`, `same-platform`.
    """
    if not sources:
        raise InputError(
            "an index of nothing", reason="no-images", hint="name the images: HOST/REPOSITORY:TAG …"
        )
    rows: dict[str, dict[str, Any]] = {}
    for source in sources:
        manifest = target.get_manifest(source)
        if is_index(manifest):
            raise InputError(f"{target.name}:{source} is an index itself", reason="not-an-image")
        platform = platform_of(target, read_image(manifest, f"{target.name}:{source}"))
        name = "/".join(platform.values())
        if name in rows:
            raise InputError(f"two images for {name}: {source} is the second", reason="same-platform")
        rows[name] = {**manifest.descriptor(), "platform": platform}
    ordered = [rows[name] for name in sorted(rows)]
    index = Manifest(INDEX, canonical.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": ordered}))
    if not dry:
        with target.writing():
            target.put_manifest(index)
            target.tag({tag: index})
    return Combined(index.blob.digest, {name: str(row["digest"]) for name, row in sorted(rows.items())})


def platform_of(target: Target, image: Image) -> dict[str, str]:
    """What its configuration says that it runs on."""
    try:
        config = json.loads(read(target, image.config.blob))
        found = {key: str(config[key]) for key in ("os", "architecture")}
        return {**found, **({"variant": str(config["variant"])} if config.get("variant") else {})}
    except (ValueError, KeyError, TypeError) as problem:
        what = f"{target.name}@{image.digest} names no platform"
        raise InputError(what, reason="not-an-image", hint="it is an artifact") from problem
