"""Publishing what a run built, and knowing at once that it already is.

After a publication the store keeps a small note: this target, these outputs and these tags led to these
manifests. While it holds and the tags still name those manifests, nothing is assembled or sent.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from kairosbuild.core.atomic import write_bytes
from kairosbuild.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome
    from kairosbuild.registry.documents import Package


def publish(parts: Parts, outcome: Outcome, targets: Sequence[str], where: str) -> list[dict[str, Any]]:
    """Publish these nodes; a JSON-able row for each, in the targets' order."""
    from pathlib import Path

    tags = outcome.publish.tags
    wanted = {name: {k: b.digest for k, b in outcome.outputs(name).items()} for name in targets}
    asked = json.dumps(
        [where, list(tags), wanted, outcome.platform, _proof_of(parts, outcome)], sort_keys=True
    )
    note = Path(parts.store_root(), "published", sha256(asked.encode()).hexdigest()[:40])
    if known := _still_there(note, where, parts):
        return [{**row, "uploaded": 0, "skipped": True} for row in known]
    rows = _publish(parts, outcome, targets, where)
    if _dry(parts):
        return rows
    write_bytes(note, json.dumps(rows).encode())
    return rows


def manifest_of(parts: Parts, outcome: Outcome, node: str) -> str:
    """The digest that a node is published as."""
    return package_of(parts, outcome, node).manifest.blob.digest


def package_of(parts: Parts, outcome: Outcome, node: str) -> Package:
    """A node as it is published; an artifact's image is that of the recipe's own publication."""
    from kairosbuild.cli.transport import transport
    from kairosbuild.registry.documents import Sources
    from kairosbuild.registry.publish import packages

    names = dict.fromkeys((*outcome.publish.targets, node))
    items = [_item(outcome, name) for name in names if outcome.has(name)]
    parts.bring([item.document for item in items])
    sources = Sources(parts.store.cas, lambda blob: parts.bring([blob]))
    made = packages(items, sources, transport(parts))
    return next(one for one in made if one.name == node)


def destination(parts: Parts, outcome: Outcome) -> str:
    """Where a recipe is published: the command line's word, its own, the workspace's, a layout on disk."""
    said = getattr(parts.arguments, "push", None) or outcome.publish.to
    if not said and _workspace_names_registry(outcome.root):
        said = parts.workspace.registry.to
    return said or "oci:" + os.path.relpath(os.path.join(outcome.root, "dist", outcome.name))


def _workspace_names_registry(root: str) -> bool:
    try:
        with open(os.path.join(root, "BUILD.yaml"), "rb") as stream:
            return b"registry" in stream.read()
    except OSError:
        return False


def _publish(parts: Parts, outcome: Outcome, targets: Sequence[str], where: str) -> list[dict[str, Any]]:
    from kairosbuild.cli.transport import lister, transport
    from kairosbuild.registry.publish import publish

    target, version = parts.registries.open(where)
    tags = (version,) if version else outcome.publish.tags
    items = [_item(outcome, name) for name in targets]
    attachments = _proven(parts, outcome, targets)
    parts.bring([item.document for item in items])
    made = transport(parts)
    parts.sharing.finish()  # what is there can be mounted
    origin = parts.sharing.origin(target.name.partition("/")[0])
    done = publish(
        target, items, tags, cas=parts.store.cas, transport=made, events=parts.events,
        origin=lambda _: origin, bring=lambda blob: parts.bring([blob]),
        attachments=attachments,
        fixed=parts.workspace.registry.immutable, dry=_dry(parts), lister=lister(parts),
    )  # fmt: skip
    return [asdict(one) for one in done]


def _proven(parts: Parts, outcome: Outcome, targets: Sequence[str]) -> Any:
    """What is said about each package, None when nothing is. Raises what the workspace's policy forbids."""
    from kairosbuild.cli import policies, proofs

    key, publish, gated = key_of(parts, outcome), outcome.publish, policies.asks(parts, outcome.root)
    if not (key or publish.sbom or publish.provenance or gated):
        return None
    made = proofs.Proofs(parts, outcome)
    if gated:
        policies.enforce(parts, outcome, made, list(targets))
    return made.attachments(publish, key)


def _proof_of(parts: Parts, outcome: Outcome) -> list[Any]:
    """What decides how a publication is proven, as far as the outputs do not."""
    publish = outcome.publish
    texts = _texts(parts) if publish.provenance else []
    policy = policy_text(outcome.root)
    digests = [sha256(text).hexdigest() for text in (policy, *texts)]
    return [publish.sbom, publish.provenance, key_of(parts, outcome), *digests]


def key_of(parts: Parts, outcome: Outcome) -> str:
    """The key to sign with: the command line's, else the recipe's, whose file is of the workspace."""
    said = getattr(parts.arguments, "sign", None) or ""
    declared = outcome.publish.sign
    if said or not declared or ":" in declared:
        return said or declared
    return os.path.join(outcome.root, declared)


def _texts(parts: Parts) -> list[bytes]:
    """The recipe and its lock."""
    recipe = os.path.abspath(parts.arguments.recipe)
    found = []
    for file in (recipe, os.path.splitext(recipe)[0] + ".lock"):
        with suppress(FileNotFoundError), open(file, "rb") as stream:
            found.append(stream.read())
    return found


def policy_text(root: str) -> bytes:
    """BUILD.yaml where it says something of a policy, as part of what a publication depends on."""
    try:
        with open(os.path.join(root, "BUILD.yaml"), "rb") as stream:
            data = stream.read()
    except OSError:
        return b""
    return data if b"policy" in data else b""


def _dry(parts: Parts) -> bool:
    return bool(getattr(parts.arguments, "dry_run", False))


def _item(outcome: Outcome, name: str) -> Any:
    from kairosbuild.registry.documents import Item

    outputs = outcome.outputs(name)
    for kind in ("image", "artifact"):
        if kind in outputs:
            cell = outcome.publish.cells.get(name)
            if cell is None:
                return Item(name, kind, outputs[kind])
            return Item(name, kind, outputs[kind], cell.subject, cell.node, cell.suffix)
    raise InputError(
        f"{name} is a {outcome.kind(name)} and yields nothing that can be published",
        reason="not-publishable", hint="publish images and artifacts (a disk, for one)",
        origin=outcome.publish.origin,
    )  # fmt: skip


def _still_there(note: Any, where: str, parts: Parts) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return []
    target = parts.target(where)
    tags = [(reference.rpartition(":")[2], row["digest"]) for row in rows for reference in row["references"]]
    last = [(digest, digest) for row in rows for digest in row["referrers"][-1:]]  # attached after all others
    return rows if all(target.head_manifest(name) == digest for name, digest in (*tags, *last)) else []
