"""What any recipe may say: its top, what is published, and the fields that every node has beside those of its kind.

The default epoch is a constant and not the date of a commit or of today, so that the same recipe
gives the same bytes whenever and from whatever checkout it is built. It lies after 1980, where the
clocks of FAT and zip begin, and before any build, so that no file is from the future.
"""

from __future__ import annotations

from dataclasses import dataclass

from kairosbuild.recipe.fields import choice, duration, flag, infos, integer, record, refs, size, text, texts
from kairosbuild.recipe.matrix import ARCHITECTURES

EPOCH = 1735689600  # 2025-01-01T00:00:00Z
PLATFORMS = tuple(f"linux/{name}" for name in ARCHITECTURES)
NODE_NAME = r"[a-z0-9][a-z0-9_.-]{0,127}"
RECIPE_NAME = r"[a-z0-9][a-z0-9_.-]{0,127}"
TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True, slots=True)
class PublishSpec:
    """What goes where once it is built, and what must have passed before."""

    targets: tuple[str, ...] = refs("Nodes whose results are published.", ())
    to: str = text(
        "Where to: a reference, or `oci:DIR` for an image layout on disk.",
        "",
        example="registry.example.com/os/debian",
    )
    tags: tuple[str, ...] = texts("Tags that name it there.", ("latest",), least=1, pattern=TAG)
    requires: tuple[str, ...] = refs("Nodes that must have succeeded first, such as tests.", ())
    sbom: tuple[str, ...] = texts(
        "Inventories to attach: `spdx`, `cyclonedx`.", ("spdx",), pattern="spdx|cyclonedx"
    )
    provenance: bool = flag("Attach SLSA provenance, the lock and the verdicts of tests.", True)
    sign: str = text(
        "The key to sign with: a file of the workspace, `env://NAME` or `pkcs11:…`.",
        "",
        example="env://RELEASE_KEY",
    )


@dataclass(frozen=True, slots=True)
class RecipeSpec:
    """The top of a recipe, beside `vars` and `nodes`."""

    version: int = integer("Version of the recipe language; this is 1.", least=1, most=1)
    name: str | None = text(
        "Name of what is built; the file's own name if left out.", None, pattern=RECIPE_NAME, example="debian"
    )
    publish: PublishSpec | None = record("What is published, and where.", PublishSpec, None)
    epoch: int = integer(
        "Seconds since 1970 that every timestamp in an output is clamped to.",
        EPOCH,
        least=315532800,
        most=4294967295,
    )
    platform: str = choice("What the outputs run on.", PLATFORMS, PLATFORMS[0])


@dataclass(frozen=True, slots=True)
class NodeHints:
    """Fields that every node has beside those of its kind. None of them is part of a key."""

    timeout: int | None = duration("Seconds after which the node has failed.", None, hint=True, least=1)
    cpu: int | None = integer("Processors the node keeps busy.", None, hint=True, least=1)
    memory: int | None = size("Memory the node needs.", None, hint=True, least=1)
    tags: tuple[str, ...] = texts("Words to select nodes by.", (), hint=True)
    doc: str | None = text("What this node is for.", None, hint=True)


ALSO_TOP = frozenset(("vars", "nodes", "matrix"))
ALSO_NODE = frozenset(("kind", "override", "when", *infos(NodeHints)))
