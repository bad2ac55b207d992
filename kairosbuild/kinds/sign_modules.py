"""Kind `sign-modules`: the layer of drivers or of a kernel, with the user's signature on every module that has none.

A late node: what costs time (compiling) is done before, by nodes that know of no key. Signatures are deterministic,
the certificate is in this node's key, the private key in none; whoever finds the result in a cache needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kairosbuild.boot.modules import expand, name_of
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs
from kairosbuild.kernels import signature
from kairosbuild.keys import cms
from kairosbuild.keys.certificate import Certificate, certificate, key_at, mismatch
from kairosbuild.keys.keys import Signer
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import ref, source, text

if TYPE_CHECKING:
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.layer import Item

_OF = ("kernel", "drivers")
_PACKED = re.compile(r"\.(xz|zst|gz)$")
_LISTS = re.compile(
    r"(?:usr/)?lib/modules/[^/]+/modules\.(dep|alias|symbols|softdep|weakdep|devname)(\.bin)?"
)


@dataclass(frozen=True, slots=True)
class SignModulesSpec:
    """Whose modules, and by whom."""

    of: str = ref(
        "A node of kind drivers or kernel; list this node in the image in its place.", accepts=("layer",)
    )
    certificate: str = source("The certificate (PEM) that kernels are told to trust.")
    key: str = text(
        "Its private key, when there is something to sign: a file, `env://NAME` or `pkcs11:…`. In no key of a "
        "node, no log and no layer.",
        "",
        hint=True,
    )


class SignModules:
    """See the module."""

    name: ClassVar[str] = "sign-modules"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = SignModulesSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: SignModulesSpec) -> tuple[str, ...]:
        """None: a key is not shown to any program."""
        return ()

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """There are modules in what it signs."""
        for one in declaration.refs.get("of", ()):
            if one in declarations and declarations[one].kind not in _OF:
                yield (
                    "of",
                    f"{one!r} is of kind {declarations[one].kind}",
                    "name a node of kind drivers or kernel",
                )

    def preflight(self, name: str, spec: SignModulesSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its key before anything runs."""
        if problem := mismatch(root / spec.certificate, spec.key and key_at(spec.key, root), name):
            yield problem

    def lock(self, spec: SignModulesSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Sign, and write the layer again; what goes beside it stays."""
        from kairosbuild.oci.index import Index
        from kairosbuild.oci.layer import write_layer

        by, who = _signer(task)
        given = task.inputs["of"][0].outputs
        index = Index.loads(task.path(given["index"]).read_bytes())
        made = task.scratch / "signed.tar"
        with task.path(given["layer"]).open("rb") as tar, made.open("wb") as out:
            items, signed = _signed(index, tar.fileno(), by, who)
            rows = write_layer(items, out, task.epoch)
        task.note(f"signed {len(signed)} modules as {who.subject}")
        found = {**given, **layer_outputs(task, made, rows)}
        if "drivers" in given:
            about = loads(task.path(given["drivers"]).read_bytes())
            modules = [{**one, "signed": True} for one in about["modules"]]
            found["drivers"] = task.put_bytes(dumps({**about, "modules": modules}))
        return found


def _signer(task: Task) -> tuple[Signer, Certificate]:
    """The key and its certificate. Raises InputError (`key-missing`, `key-mismatch`, …)."""
    spec: SignModulesSpec = task.spec
    who = certificate(task.source_path("certificate", "").read_bytes(), spec.certificate)
    if not spec.key:
        raise InputError(
            f"{task.name}: there are modules to sign, and no key is named",
            reason="key-missing",
            hint="set `key` to a file, env://NAME or pkcs11:…",
        )
    at = str(task.source_path("certificate", ""))
    return who.signer(key_at(spec.key, Path(at.removesuffix(spec.certificate))), task.name), who


def _signed(index: Index, fd: int, by: Signer, who: Certificate) -> tuple[list[Item], list[str]]:
    """The members of the layer with every module signed, and the modules that were not."""
    import os

    from kairosbuild.oci.layer import Slice

    items: list[Item] = []
    signed: list[str] = []
    for place in index:
        entry = place.entry
        name = name_of(entry.path) if entry.type == "file" else None
        image = expand(entry.path, os.pread(fd, entry.size, place.data)) if name else b""
        if not name or signature.signed(image):
            items.append((entry, Slice(fd, place.data) if entry.type == "file" else None))
            continue
        data = signature.sign(image, lambda plain: cms.detached(plain, who, by, enclose=False))
        items.append((replace(entry, path=_PACKED.sub("", entry.path), size=len(data)), data))
        signed.append(name)
    if any(_PACKED.search(place.entry.path) and name_of(place.entry.path) in signed for place in index):
        items = [item for item in items if not _LISTS.fullmatch(item[0].path)]  # they name the packed files
    return items, signed
