"""Signatures: with keys declared, only manifests that one of them signed are taken."""

from __future__ import annotations

from collections.abc import Sequence

from kairosbuild.node.offer import Verify
from kairosbuild.node.problem import Problem
from kairosbuild.node.registry import Manifest, Repository


def verifier(keys: Sequence[str]) -> Verify:
    """What judges a manifest: everything passes without keys."""

    def verify(repository: Repository, manifest: Manifest) -> None:
        if keys:
            raise Problem(f"{repository.name}@{manifest.digest} is not signed", reason="not-signed")

    return verify
