"""A layer's compressed form, made once per layer and compressor, and remembered like any result."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.core.digest import Blob
    from kairosbuild.oci.transport import Method


def transport(parts: Parts) -> Callable[[Blob, str], Blob]:
    """A function from a layer and a method (`gzip`, `zstd`) to the blob that travels.

    It may be in a shared cache only, from where it can be mounted; a layer is brought when it is compressed here.
    """
    from kairosbuild.execute.derive import derive
    from kairosbuild.oci.transport import compress, compressor_id

    store, results = parts.store, parts.results

    def made(layer: Blob, method: str) -> Blob:
        way = cast("Method", method)

        def make() -> dict[str, Blob]:
            parts.bring([layer])
            with store.cas.writer() as out:
                compress(store.cas.path(layer.digest), cast("BinaryIO", out), way)
                return {"transport": out.commit()}

        preimage = {"layer": layer.digest, "compressor": compressor_id(way)}
        return derive(store, results, "transport", 1, preimage, make)["transport"]

    return made


def lister(parts: Parts) -> Callable[[Blob], bytes]:
    """A function from a blob to the list of its chunks, made once and remembered too."""
    from kairosbuild.execute.derive import derive
    from kairosbuild.oci import chunks

    store = parts.store

    def listed(blob: Blob) -> bytes:
        def make() -> dict[str, Blob]:
            parts.bring([blob])
            return {"chunks": store.cas.put_bytes(chunks.dumps(store.cas.path(blob.digest)))}

        preimage = {"blob": blob.digest, "form": chunks.MAGIC.decode()}
        found = derive(store, parts.results, "chunks", 1, preimage, make)["chunks"]
        parts.bring([found])
        return store.cas.read(found)

    return listed
