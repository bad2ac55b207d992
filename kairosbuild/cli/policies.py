"""Policies of the workspace at work: signatures while locking, gates before publishing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from kairosbuild.core.errors import HostError, InputError, KbuildError, raise_problems
from kairosbuild.proof.policy import breaches, images_of

if TYPE_CHECKING:
    from kairosbuild.cli.proofs import Proofs
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome
    from kairosbuild.execute.nodes import Node
    from kairosbuild.keys.keys import PublicKey
    from kairosbuild.recipe.workspace import Workspace
    from kairosbuild.registry.registries import Registries


class Signatures:
    """`execute.lock.Witness`: looks signatures up where the lock does not know of a right one yet."""

    def __init__(
        self, workspace: Workspace, registries: Registries, refuse_offline: Callable[[], None]
    ) -> None:
        self._workspace, self._registries, self._refuse_offline = workspace, registries, refuse_offline
        self._keys: dict[str, PublicKey] = {}

    def __call__(self, node: Node, known: Mapping[str, str], frozen: bool) -> Mapping[str, str]:
        """See the protocol."""
        found: dict[str, str] = {}
        images = images_of(node.declaration.kind, node.declaration.spec, node.locked.data)
        for image, digest in images.items():
            keys = self._wanted(image)
            if keys is None:
                continue
            if known.get(digest) in {key.id for key in keys}:
                found[digest] = known[digest]
                continue
            try:
                found[digest] = self._look(image, digest, keys, frozen)
            except InputError as problem:
                problem.origin = problem.origin or node.declaration.origin
                raise
        return found

    def _wanted(self, image: str) -> list[PublicKey] | None:
        """The keys of which one must have signed, None when no rule asks for any."""
        name = _name(image)
        for rule in self._workspace.policy.signed:
            if fnmatchcase(name, rule.images):
                return [self._key(one) for one in rule.keys] or None
        return None

    def _key(self, reference: str) -> PublicKey:
        if reference not in self._keys:
            from kairosbuild.keys import keys

            file = reference if ":" in reference else os.path.join(self._workspace.root, reference)
            self._keys[reference] = keys.verifier(file)
        return self._keys[reference]

    def _look(self, image: str, digest: str, keys: list[PublicKey], frozen: bool) -> str:
        """The id of the key that signed the manifest, or the index that the image's name stands for."""
        if frozen:
            what = f"the lock does not say that {image} is signed as the policy wants it"
            raise InputError(what, reason="lock-unsigned", hint="run: kbuild lock RECIPE")
        self._refuse_offline()
        where = image if image.startswith("oci") else f"oci://{image}"
        return self._registries.first(  # a cache need not have taken signatures along
            where,
            lambda target, version: self._signer(image, digest, keys, target, version),
            (HostError, InputError),
        )

    def _signer(self, image: str, digest: str, keys: list[PublicKey], target: Any, version: str) -> str:
        from kairosbuild.proof.signing import verify

        problem: InputError | None = None
        for signed in self._signed(target, version, digest):
            for key in keys:
                try:
                    verify(target, signed, key)
                    return key.id
                except InputError as error:
                    problem = error if problem is None or error.reason == "signed-by-another" else problem
        assert problem is not None
        ids = ", ".join(key.id for key in keys)
        hint = f"the workspace's policy wants a signature by {ids}"
        raise InputError(f"{image}: {problem.message}", reason=problem.reason, hint=hint)

    def _signed(self, target: Any, version: str, digest: str) -> list[str]:
        """What may carry the signature: the manifest, and the index that still holds it."""
        from kairosbuild.registry.manifests import is_index, read_index

        found = [digest]
        with suppress(HostError):
            index = target.get_manifest(version)
            if is_index(index) and digest in {one.blob.digest for one in read_index(index, target.name)}:
                found.append(index.blob.digest)
        return found


def enforce(parts: Parts, outcome: Outcome, proofs: Proofs, targets: list[str]) -> None:
    """Raise all that the policy forbids of what would be published, each at the node it came by."""
    policy = parts.workspace.policy
    origins = {one.name: one.origin for one in parts.recipe().nodes}
    problems: dict[tuple[str, str], KbuildError] = {}
    for name in targets:
        for one in breaches(policy, name, proofs.contents(name), _files(parts, outcome, name)):
            origin = origins.get(one.node) or origins.get(name)
            problem = InputError(one.message, reason=one.reason, hint=one.hint, origin=origin)
            problems.setdefault((one.reason, one.message), problem)
    raise_problems(list(problems.values()))


def asks(parts: Parts, root: str) -> bool:
    """Whether the workspace has any gate. Its file is read as YAML only when it could."""
    from kairosbuild.cli.publishing import policy_text

    if not policy_text(root):
        return False
    policy = parts.workspace.policy
    sizes = policy.sizes
    limits = (sizes.image, sizes.layer, sizes.artifact)
    rules = policy.licenses
    return bool(policy.forbidden or rules.allow or rules.deny or rules.unknown == "deny" or any(limits))


def _files(parts: Parts, outcome: Outcome, name: str) -> int:
    from kairosbuild.core.canonical import loads

    outputs = outcome.outputs(name)
    if "artifact" not in outputs:
        return 0
    parts.bring([outputs["artifact"]])
    return sum(file["size"] for file in loads(parts.store.cas.read(outputs["artifact"]))["files"])


def _name(image: str) -> str:
    """An image's name without scheme, tag and digest."""
    from kairosbuild.sources.images import without_version

    return without_version(image.removeprefix("oci-layout:").removeprefix("oci://").removeprefix("docker://"))
