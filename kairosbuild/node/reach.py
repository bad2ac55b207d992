"""A reference as this machine reaches it: the repository it is in, and what judges what comes from there."""

from __future__ import annotations

from dataclasses import replace

from kairosbuild.node import settings
from kairosbuild.node.offer import Verify
from kairosbuild.node.reference import Reference, parse
from kairosbuild.node.registry import Repository
from kairosbuild.node.settings import Settings
from kairosbuild.node.trust import verifier


def opened(reference: str, declared: Settings, *, plain: bool) -> tuple[Reference, Repository, Verify]:
    """The reference taken apart, its repository, what judges its manifests; `plain` is without TLS."""
    named = parse(reference)
    access = settings.access(declared)
    if plain:
        access = replace(access, insecure=access.insecure | {named.host})
    return named, Repository(named, access), verifier(declared.keys)
