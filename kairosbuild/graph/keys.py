"""Keys: sha256 of a domain tag and the canonical JSON of everything that may change the output.

Inputs stand in it by their *output* digests, not by their keys: a node that rebuilds to the same
bytes stops the wave. `docs/keys.md` says what is in a preimage, what never is, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob
from kairosbuild.graph.node import Input, Kind, Locked, SourceFile
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import FieldInfo, infos

FORMAT = 1
KEY_TAG = b"kairosbuild.key.v1\n"
DERIVE_TAG = b"kairosbuild.derive.v1\n"

Preimage = Mapping[str, Any]


def preimage(
    kind: Kind,
    declaration: Declaration,
    *,
    platform: str,
    epoch: int,
    inputs: Mapping[str, Sequence[Input]],
    sources: Mapping[str, Sequence[SourceFile]],
    locked: Locked,
    tools: Mapping[str, Blob],
) -> dict[str, Any]:
    """Everything that may change what `build` makes, as one JSON-able document.

    A declaration's `spec` holds no hints and no edges already. An input gives its kind and outputs (those
    that a role is keyed `by`, else all), and its name only in a role that says names matter; materials give
    digests, never where they came from. `program` is there for kinds that ship files of this program.
    """
    ships = getattr(kind, "ships", None)
    return {
        "format": FORMAT,
        "kind": kind.name,
        "version": kind.version,
        "spec": declaration.spec,
        "platform": platform,
        "epoch": epoch,
        "inputs": {
            role: [_input(one, field_of(kind.Spec, role)) for one in some] for role, some in inputs.items()
        },
        "sources": {role: [_file(one) for one in files] for role, files in sources.items()},
        "locked": {"data": locked.data, "materials": [one.digest for one in locked.materials]},
        "tools": {purpose: layer.digest for purpose, layer in tools.items()},
        **({"program": dict(ships())} if ships else {}),
    }


def key(document: Preimage) -> str:
    """The key of a preimage: 64 hex digits. TypeError when something in it has no canonical form."""
    return _key(KEY_TAG, document)


def names_matter(spec: type, role: str) -> bool:
    """Whether the names of the nodes in a role (`layers`, `files.0.from`) reach the output."""
    info = field_of(spec, role)
    return info is not None and info.names


def field_of(spec: type, role: str) -> FieldInfo | None:
    """The field that a role belongs to, at whatever depth."""
    info: FieldInfo | None = None
    for part in role.split("."):
        if info is not None and info.record is not None and info.type != "record" and part not in infos(spec):
            continue  # an index or a label
        info = infos(spec).get(part)
        if info is None or info.record is None:
            break
        spec = info.record
    return info


def derived_key(domain: str, version: int, document: Preimage) -> str:
    """The key of a sub-result that many nodes may share; domains never collide, nor with nodes."""
    return _key(DERIVE_TAG, {"domain": domain, "version": version, "preimage": document})


def _key(tag: bytes, document: Preimage, sha: Callable[[bytes], Any] = hashlib.sha256) -> str:
    return str(sha(tag + dumps(document)).hexdigest())


def _input(one: Input, info: FieldInfo | None) -> dict[str, Any]:
    by = info.by if info else ()
    outputs = {name: blob.digest for name, blob in one.outputs.items() if not by or name in by}
    found: dict[str, Any] = {"kind": one.kind, "outputs": outputs}
    if info and info.names:
        found["name"] = one.name
    return found


def _file(one: SourceFile) -> list[str | int]:
    content = one.blob.digest if one.blob else one.target
    return [one.logical, one.type, one.mode, content]
