"""Small kinds with every type of field, for tests of the parser's own rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from kairosbuild.recipe.fields import (
    choice,
    digest,
    duration,
    flag,
    integer,
    mode,
    record,
    recordmap,
    records,
    ref,
    refmap,
    refs,
    size,
    source,
    sourcemap,
    text,
    textmap,
    texts,
)


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """A base."""

    image: str = text("Reference of an image.", example="debian:trixie")
    sha256: str | None = digest("Its digest.", None)


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece."""

    source: str = source("Where it is.")
    mode: str = mode("Its mode.", "0644")
    after: str | None = ref("A node it needs.", None)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer with a field of every type."""

    on: str | None = ref("What it lies on.", None, accepts=("layer",))
    install: tuple[str, ...] = texts("Names.", (), pattern="[a-z0-9.+-]+")
    labels: Mapping[str, str] = textmap("Labels.", {})
    from_: str = text("A name that Python keeps.", "", pattern="[a-z]*")
    release: str = choice("A release.", ("42", "43", "rawhide"), "43")
    count: int = integer("How many.", 1, least=1, most=9)
    quick: bool = flag("Hurry.")
    space: int = size("Room.", 0, most=1 << 40)
    wait: int = duration("How long.", 0)
    permissions: str = mode("Permissions.", "0755")
    sha256: str | None = digest("A digest.", None)
    tree: str | None = source("A folder.", None)
    extra: Mapping[str, str] = sourcemap("More files.", {})
    inputs: Mapping[str, str] = refmap("Other nodes.", {}, accepts=("layer", "file"))
    piece: Piece | None = record("One piece.", Piece, None)
    pieces: tuple[Piece, ...] = records("Pieces.", Piece, ())
    named: Mapping[str, Piece] = recordmap("Pieces by name.", Piece, {})
    even: int = integer("An even number.", 0, check=lambda value: "odd" if value % 2 else "")
    retries: int = integer("How often.", 0, hint=True)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image."""

    layers: tuple[str, ...] = refs("Its layers.", accepts=("layer",), least=1, names=True)


def layers_differ(name, declaration, declarations):
    """The check across nodes: no layer stands twice in an image."""
    seen = declaration.refs["layers"]
    assert all(each in declarations for each in seen)
    return [
        (f"layers.{at}", f"{each!r} is in it twice", "name it once")
        for at, each in enumerate(seen)
        if each in seen[:at]
    ] + ([("layers", "more than five", "")] if len(seen) > 5 else [])


KINDS = {
    "base": SimpleNamespace(Spec=BaseSpec, produces="layer"),
    "layer": SimpleNamespace(Spec=LayerSpec, produces="layer"),
    "image": SimpleNamespace(Spec=ImageSpec, produces="image", check=layers_differ),
}
