"""What a run says about what it publishes: inventories, provenance, verdicts and the lock, signed or not."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kairosbuild.core.digest import of_bytes
from kairosbuild.proof import statement
from kairosbuild.proof.built import TOOLS, Built, SourceText, Step
from kairosbuild.proof.contents import Contents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome
    from kairosbuild.keys.keys import Signer
    from kairosbuild.proof.view import Layer
    from kairosbuild.recipe.declaration import Recipe
    from kairosbuild.recipe.publication import Publish
    from kairosbuild.registry.documents import Package
    from kairosbuild.registry.referrers import Referrer
    from kairosbuild.registry.target import Target

LOCK = "application/vnd.kairosbuild.lock.v1+json"
_PREDICATE = "in-toto.io/predicate-type"
_INSIDE = (f"{TOOLS}boot",)  # tools trees whose programs are in what is booted


class Proofs:
    """Everything that can be said about an outcome. Work is done when it is first asked for."""

    def __init__(self, parts: Parts, outcome: Outcome) -> None:
        self._parts, self._outcome = parts, outcome
        self.built = _built(parts, outcome)

    def attachments(self, publish: Publish, key: str) -> Any:
        """For `registry.publish`: what is attached to each package, signed as it is attached."""
        from kairosbuild.keys import keys

        signer = keys.signer(key) if key else None

        def attach(target: Target, package: Package) -> Sequence[Referrer]:
            kept = self._kept(target, package) if publish.provenance else None
            said = list(self._said(publish, package, kept))
            if signer:
                self._sign(target, package, said, signer)
            lock = [] if kept else self._lock(publish, package)
            return [*(one for one in map(_referrer, said) if one), *lock]

        return attach

    def contents(self, node: str) -> Contents | None:
        """What a published node holds: that of the image it was made from, or of its own layers."""
        steps = self.built.closure([node])
        images = [step for step in steps if "image" in step.outputs]
        if not images:
            return None
        return _with_tools(self._image_contents(images[-1]), self.built.closure([node]))

    def sbom(self, form: str, node: str, digest: str) -> dict[str, Any] | None:
        """The inventory of a node that was published as `digest`."""
        from kairosbuild.proof import cyclonedx, spdx

        found = self.contents(node)
        module = {"spdx": spdx, "cyclonedx": cyclonedx}[form]
        return module.document(self._name(node), digest, found, self.built.epoch) if found else None

    def provenance(self, node: str) -> dict[str, Any]:
        """The SLSA predicate of a node."""
        from kairosbuild.proof.provenance import provenance

        return provenance(self.built, node)

    def verdicts(self, node: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tests that passed on this node, or on what was made from it."""
        from kairosbuild.core.canonical import loads
        from kairosbuild.proof.provenance import test_result

        for step in self.built.steps.values():
            below = {one.name for one in self.built.closure([step.name])}
            if "verdict" in step.outputs and node in below and self._outcome.has(step.name):
                verdict = self._outcome.outputs(step.name)["verdict"]
                self._parts.bring([verdict])
                tested = {f"{name}.{output}": digest for name in step.needs if not name.startswith(TOOLS)
                          for output, digest in self.built.steps[name].outputs.items()}  # fmt: skip
                yield step.name, test_result(step, loads(self._parts.store.cas.read(verdict)), tested)

    def _kept(self, target: Target, package: Package) -> Mapping[str, Any] | None:
        """The provenance that is there already, when it tells of this build in a recipe's other words.

        An edit that changes no digest says nothing new about what was published, nor does its lock.
        """
        from kairosbuild.core.errors import HostError
        from kairosbuild.proof.provenance import same_build
        from kairosbuild.registry.referrers import files, listed

        mine = self.provenance(package.name)
        for one in listed(target, package.manifest.blob.digest, statement.IN_TOTO):
            with suppress(HostError, ValueError):
                for _, data in files(target, one):
                    there = statement.read_statement(data)
                    if there.predicate_type == statement.SLSA and same_build(there.predicate, mine):
                        return dict(there.predicate)
        return None

    def _said(
        self, publish: Publish, package: Package, kept: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, str, str, Any, bytes]]:
        """(word, type, name, predicate, bytes) of each thing said about a package."""
        from kairosbuild.proof import cyclonedx, spdx

        node, digest = package.name, package.manifest.blob.digest
        kinds = {"spdx": (spdx, statement.SPDX), "cyclonedx": (cyclonedx, statement.CYCLONEDX)}
        for form in publish.sbom:
            if document := self.sbom(form, node, digest):
                yield form, kinds[form][1], self._name(node), document, _json(document)
        if publish.provenance:
            said: list[tuple[str, str, Mapping[str, Any]]] = [
                ("provenance", statement.SLSA, kept or self.provenance(node))
            ]
            said += [
                (f"verdict-{_word(name)}", statement.TEST_RESULT, one) for name, one in self.verdicts(node)
            ]
            for word, kind, predicate in said:
                data = statement.statement(digest, self._name(node), kind, predicate)
                yield word, kind, self._name(node), predicate, data

    def _sign(
        self,
        target: Target,
        package: Package,
        said: Sequence[tuple[str, str, str, Any, bytes]],
        signer: Signer,
    ) -> None:
        from kairosbuild.cli.signing import name_of
        from kairosbuild.proof.signing import attest, known, sign

        there = known(target, package.manifest.blob.digest, signer.public)
        sign(target, package.manifest, name_of(target), signer, there)
        for _, kind, name, predicate, _ in said:
            attest(target, package.manifest, name, kind, predicate, signer, there)

    def _lock(self, publish: Publish, package: Package) -> Iterator[Referrer]:
        from kairosbuild.registry.referrers import File, Referrer
        from kairosbuild.registry.target import TITLE

        file = Path(os.path.splitext(self._parts.arguments.recipe)[0] + ".lock")
        if publish.provenance and file.exists():
            title = {TITLE: file.name}
            yield Referrer(LOCK, (File(LOCK, file.read_bytes(), title),), "lock")

    def _name(self, node: str) -> str:
        return f"{self.built.recipe}:{node}"

    def _image_contents(self, image: Step) -> Contents:
        """Made once for the image and what the lock says of its layers' nodes."""
        from kairosbuild.core.canonical import dumps, loads
        from kairosbuild.execute.derive import derive
        from kairosbuild.proof import licences
        from kairosbuild.proof.contents import VERSION, contents

        store, written = self._parts.store, self._outcome.outputs(image.name)["image"]
        self._parts.bring([written])
        document = loads(store.cas.read(written))
        nodes = dict.fromkeys(row["name"] for row in document["layers"])
        locked = {name: _locked(self.built.steps[name]) for name in nodes if name in self.built.steps}

        def make() -> Mapping[str, Any]:
            found = contents(list(image_layers(self._parts, document)), locked)
            return {"contents": store.cas.put_bytes(dumps(found.json()))}

        preimage = {
            "image": image.outputs["image"], "licences": licences.version(),
            "locked": of_bytes(dumps({name: list(one) for name, one in locked.items()})).digest,
        }  # fmt: skip
        made = derive(store, self._parts.results, "image-contents", VERSION, preimage, make)
        self._parts.bring(made.values())
        return Contents.read(loads(store.cas.read(made["contents"])))


def image_layers(parts: Parts, document: Mapping[str, Any]) -> Iterator[Layer]:
    """The layers of an image document, bottom to top, brought here."""
    from kairosbuild.core.digest import Blob
    from kairosbuild.oci.index import Index
    from kairosbuild.proof.view import Layer

    cas = parts.store.cas
    for row in document["layers"]:
        layer, rows = Blob(**row["layer"]), Blob(**row["index"])
        parts.bring([layer, rows])
        index = Index.loads(cas.read(rows))
        yield Layer(row["name"], layer.digest, layer.size, cas.path(layer.digest), index)


def _with_tools(found: Contents, steps: Sequence[Step]) -> Contents:
    """With the programs that were put into the initrd, out of their tools tree."""
    from kairosbuild.proof.packages import Package

    there = {(one.name, one.version, one.arch) for one in found.packages}
    rows = [
        Package("deb", row["name"], row["version"], row["arch"], node=step.name, digest=row["digest"])
        for step in steps
        if step.name in _INSIDE
        for row in step.locked.get("packages", ())
        if (row["name"], row["version"], row["arch"]) not in there
    ]
    return Contents(found.layers, tuple(sorted((*found.packages, *rows))), found.system)


def _built(parts: Parts, outcome: Outcome) -> Built:
    from kairosbuild.recipe import lockfile

    recipe = parts.recipe()
    needs = {one.name: tuple(n for names in one.refs.values() for n in names) for one in recipe.nodes}
    steps = {}
    for name in outcome.names():
        record = parts.store.actions.peek(outcome.key(name)) if outcome.has(name) else None
        if record is not None:
            outputs = {output: blob.digest for output, blob in outcome.outputs(name).items()}
            tools = tuple(TOOLS + purpose for purpose in record.preimage["tools"])
            steps[name] = Step(
                name, outcome.kind(name), record.key, outputs, record.preimage, needs.get(name, ()) + tools
            )
    lock = lockfile.read(Path(os.path.splitext(recipe.file)[0] + ".lock"))
    uris = {
        pin.digest: pin.uri
        for some in (lock.nodes, lock.toolchain)
        for e in some.values()
        for pin in e.materials
    }
    return Built(recipe.name, recipe.platform, recipe.epoch, recipe.vars, steps, tuple(_texts(recipe)), uris)


def _texts(recipe: Recipe) -> Iterator[SourceText]:
    """The recipe, what it includes, and its lock, by their place in the workspace."""
    included = (path for path, _ in recipe.files)
    for file in dict.fromkeys((recipe.file, *included, os.path.splitext(recipe.file)[0] + ".lock")):
        if os.path.exists(file):
            place = os.path.relpath(os.path.realpath(file), os.path.realpath(recipe.root))
            yield SourceText(place, of_bytes(Path(file).read_bytes()).digest)


def _locked(step: Step) -> tuple[str, Mapping[str, Any]]:
    wanted = ("packages", "family", "system")
    return step.kind, {name: step.locked[name] for name in wanted if name in step.locked}


def _referrer(one: tuple[str, str, str, Any, bytes]) -> Referrer | None:
    from kairosbuild.proof import cyclonedx, spdx
    from kairosbuild.registry.referrers import File, Referrer

    word, kind, _, _, data = one
    media = {statement.SPDX: spdx.MEDIA_TYPE, statement.CYCLONEDX: cyclonedx.MEDIA_TYPE}.get(
        kind, statement.IN_TOTO
    )
    notes = {_PREDICATE: kind} if media == statement.IN_TOTO else {}
    return Referrer(media, (File(media, data, notes),), word, notes)


def _word(name: str) -> str:
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in name)[:40]


def _json(document: Mapping[str, Any]) -> bytes:
    from kairosbuild.core.canonical import dumps

    return dumps(document)
