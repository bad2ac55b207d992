"""A layer's compressed form, made once per layer and compressor, and remembered like any result."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

from kairosbuild.core import canonical

if TYPE_CHECKING:
    from collections.abc import Callable

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.core.digest import Blob
    from kairosbuild.oci.transport import Method
    from kairosbuild.registry.documents import Sent


def transport(parts: Parts) -> Callable[[Blob, str], Sent]:
    """A function from a layer and a method (`gzip`, `zstd`, …) to what travels.

    It may be in a shared cache only, from where it can be mounted; a layer is brought when it is compressed here.
    """
    from kairosbuild.execute.derive import derive
    from kairosbuild.oci import chunked
    from kairosbuild.oci.transport import compress, compressor_id
    from kairosbuild.registry.documents import Sent

    store, results = parts.store, parts.results

    def made(layer: Blob, method: str) -> Sent:
        way = cast("Method", method)

        def make() -> dict[str, Blob]:
            parts.bring([layer])
            plain = store.cas.path(layer.digest)
            with store.cas.writer() as out:
                if method == "zstd:chunked":
                    _, notes = chunked.compress(plain, cast("BinaryIO", out))
                    return {"transport": out.commit(), "notes": store.cas.put_bytes(canonical.dumps(notes))}
                compress(plain, cast("BinaryIO", out), way)
                return {"transport": out.commit()}

        preimage = {"layer": layer.digest, "compressor": compressor_id(way)}
        outputs = derive(store, results, "transport", 1, preimage, make)
        if "notes" not in outputs:
            return Sent(outputs["transport"])
        parts.bring([outputs["notes"]])
        return Sent(outputs["transport"], canonical.loads(store.cas.read(outputs["notes"])))

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
