"""SLSA provenance (<https://slsa.dev/spec/v1.0/provenance>) and test results, as predicates.

Both depend on what was built and nothing else: no clock, no machine, no invocation. Who builds the same
gets the same bytes, so equal provenance on two machines is itself a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kairosbuild import __version__
from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import of_bytes
from kairosbuild.proof.built import TOOLS, Built, Step

BUILD_TYPE = "urn:kairosbuild:build:v1"
BUILDER = "urn:kairosbuild:builder:local"
_TEXT = {"name", "digest"}  # what is known of a recipe, and of nothing else


def provenance(built: Built, target: str) -> dict[str, Any]:
    """The predicate for one published node: recipe, lock, sources, tools, and each action's key."""
    steps = built.closure([target])
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "recipe": built.recipe,
                "target": target,
                "variables": dict(built.variables),
                "platform": built.steps[target].preimage.get("platform", built.platform),
            },
            "internalParameters": {
                "epoch": built.epoch,
                "nodes": {one.name: _node(one) for one in steps},
            },
            "resolvedDependencies": [*_texts(built), *_materials(built, steps), *_sources(steps)],
        },
        "runDetails": {"builder": {"id": BUILDER, "version": {"kairosbuild": __version__}}},
    }


def same_build(one: Any, other: Any) -> bool:
    """Whether two such predicates tell of one build, whatever words its recipe and its lock were written in.

    What variables do to a build stands in its keys.
    """
    try:
        return _without_words(one) == _without_words(other)
    except (KeyError, TypeError, AttributeError):  # a stranger's
        return False


def _without_words(predicate: Mapping[str, Any]) -> dict[str, Any]:
    definition = predicate["buildDefinition"]
    rows = [row for row in definition["resolvedDependencies"] if set(row) != _TEXT]
    asked = {**definition["externalParameters"], "variables": {}}
    told = {**definition, "resolvedDependencies": rows, "externalParameters": asked}
    return {**predicate, "buildDefinition": told}


def test_result(step: Step, verdict: Mapping[str, Any], subjects: Mapping[str, str]) -> dict[str, Any]:
    """The predicate for a test that passed; `subjects` are the digests of what was tested, by name."""
    configuration = [
        {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
        for name, digest in subjects.items()
    ]
    configuration.append({"name": f"key of {step.name}", "digest": {"sha256": step.key}})
    return {
        "result": "PASSED",
        "configuration": configuration,
        "passedTests": [step.name],
        "warnedTests": [],
        "failedTests": [],
        "verdict": dict(verdict),
    }


def _node(step: Step) -> dict[str, Any]:
    return {
        "kind": step.kind,
        "version": step.preimage["version"],
        "key": step.key,
        "needs": list(step.needs),
        "outputs": dict(step.outputs),
    }


def _texts(built: Built) -> Iterator[dict[str, Any]]:
    for text in built.sources:
        yield {"name": text.path, "digest": {"sha256": text.digest.removeprefix("sha256:")}}


def _materials(built: Built, steps: tuple[Step, ...]) -> Iterator[dict[str, Any]]:
    """Every file from outside, tools included, each once; its place is relative to a mirror."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        for digest in step.preimage["locked"]["materials"]:
            row = found.setdefault(digest, {"digest": {"sha256": digest[7:]}, "annotations": {"nodes": []}})
            row["annotations"]["nodes"].append(step.name)
            if step.name.startswith(TOOLS):
                row["annotations"]["tool"] = True
            if uri := built.uris.get(digest):
                row["uri"] = uri if re.match(r"[a-z][a-z0-9+.-]*:", uri) else f"urn:kairosbuild:{uri}"
    yield from (found[digest] for digest in sorted(found))


def _sources(steps: tuple[Step, ...]) -> Iterator[dict[str, Any]]:
    """The files of the workspace that a node was made from, as one digest a role."""
    for step in steps:
        for role, files in step.preimage["sources"].items():
            if files:
                digest = of_bytes(dumps(files)).hex
                notes = {"files": len(files), "form": "sha256 of the list of paths, modes and digests"}
                yield {"name": f"{step.name}.{role}", "digest": {"sha256": digest}, "annotations": notes}
