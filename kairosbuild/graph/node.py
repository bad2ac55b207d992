"""The idea, in one file: a node has a kind; a kind answers two questions.

*What goes into your key?* Its `Spec` answers: the type of each field says what it contributes
(see `recipe.fields`), `lock` pins what is mutable outside, `tools` names the pinned tools trees.

*How are you built?* `build` answers, with nothing at hand but a `Task`: the spec, the outputs of
the inputs, the pinned materials, and a sandbox to execute actions in.

Everything else (order, parallelism, caches, early cutoff, retries, reports) is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from kairosbuild.core.digest import Blob
from kairosbuild.graph.action import Action, ActionResult

Outputs = Mapping[str, Blob]
"""What a node yields, by name. Names in use:

`layer` an uncompressed tar whose digest is the diffID, with `index` beside it and `stack`, the
canonical JSON list of `{"layer": blob, "index": blob}` bottom to top that the layer completes;
`file` any file; `image` the image document; `disk` a bootable disk; `verdict` of a test. A kernel has
`release`, `kconfig`, `symbols`, `abi` and `headers` for drivers, and like these `boot`: what starting it takes.
"""


WITNESSES = frozenset({"serial", "screen"})
"""Outputs that show people how a run went: they differ each time, and nothing is told by that."""


@dataclass(frozen=True, slots=True)
class Material:
    """A file from outside, pinned. `uri` says where to look and is never part of a key.

    `debian:pool/main/b/bash/bash_5.2_amd64.deb` is relative to a mirror of that name,
    `https://…` absolute, `oci://HOST/REPO` a blob or manifest of a registry, `file:PATH` local.
    """

    uri: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Locked:
    """What `lock` resolved: `data` (JSON-able) and the materials' digests are part of the key."""

    data: Mapping[str, Any] = field(default_factory=dict)
    materials: tuple[Material, ...] = ()


UNLOCKED = Locked()


@dataclass(frozen=True, slots=True)
class Input:
    """A built input node as its consumer sees it."""

    name: str
    kind: str
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source as it was hashed. `logical` is relative to the source's own root ("" for a file).

    `type` is `file`, `dir` or `link`; `mode` is 0o755 or 0o644 for files (the exec bit is what is kept),
    `blob` set for files, `target` for links.
    """

    logical: str
    type: str
    mode: int
    blob: Blob | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class Reads:
    """What of a source folder counts. A kind says so by a method `reads(spec, role, sources)`, which gets the
    place of every source by its role and returns one of these, or None where all of it counts.

    `keep` is asked for each logical path and whether it is a folder, which is not entered without it;
    `asked` are the files that decided it: a change of one is a reason to look again, and not in the key.
    """

    keep: Callable[[str, bool], bool]
    asked: tuple[str, ...] = ()


Known = Callable[[str, str], Any]
"""(node, output) → the document of an output that exists already and will not change, or None."""


class Task(Protocol):
    """What a kind may use while it builds one node. Nothing here reaches the network."""

    name: str
    spec: Any
    locked: Locked
    platform: str
    epoch: int
    inputs: Mapping[str, tuple[Input, ...]]
    """Role → inputs in the recipe's order; a role is a field's name (`field.label` for a refmap)."""
    sources: Mapping[str, tuple[SourceFile, ...]]
    """Role → files, sorted by logical path. `source_path` gives the bytes."""

    @property
    def scratch(self) -> Path:
        """A private empty folder on the store's filesystem, made when first asked for, removed afterwards."""

    def source_path(self, role: str, logical: str) -> Path:
        """Where a source file's bytes can be read."""

    def path(self, blob: Blob) -> Path:
        """Where a stored blob can be read; never write there."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""

    def put_file(self, path: Path) -> Blob:
        """Store this scratch file by moving it; it is gone from `path` afterwards."""

    def tools(self, purpose: str) -> Blob:
        """The layer of a pinned tools tree, to be an action's root."""

    def execute(self, action: Action) -> ActionResult:
        """Run an action in the sandbox. Raises NodeError when it exits non-zero or lacks an output."""

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        """Do work once for this preimage, ever: a result of its own in the action cache.

        For what many nodes share: a layer's compressed transport, its boot form.
        """

    def note(self, text: str) -> None:
        """A line for the node's log, and for the person who watches."""


class Locker(Protocol):
    """What a kind may use while it resolves what is mutable. Only here is the network reached."""

    name: str
    platform: str
    epoch: int

    def upstream(self, role: str) -> Sequence[tuple[str, Any, Locked]]:
        """(kind, spec, locked) of the nodes a role names, already locked."""

    def fetch(self, uri: str, *, digest: str | None = None, size: int | None = None) -> Path:
        """Get a file by a `Material`-style uri; verified when its digest is known."""

    def path(self, blob: Blob) -> Path:
        """Where a stored blob can be read."""

    @property
    def scratch(self) -> Path:
        """A private folder on the store's filesystem, removed afterwards."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes, for an action to read."""

    def put_file(self, path: Path) -> Blob:
        """Store this scratch file by moving it."""

    def derive(
        self, domain: str, version: int, preimage: Mapping[str, Any], make: Callable[[], Outputs]
    ) -> Outputs:
        """Do work once for this preimage, ever: the same results as a `Task`'s."""

    def tools(self, purpose: str) -> Blob:
        """The layer of a pinned tools tree, built if need be."""

    def execute(self, action: Action) -> ActionResult:
        """Run an action in the sandbox (no network there)."""

    def note(self, text: str) -> None:
        """A line for the person who waits."""


class Kind(Protocol):
    """A kind of node. Implementations are stateless; one instance serves every node.

    Few kinds need more than is listed below. Those that do have, besides, a method

    - `check(name, declaration, declarations)`: what is wrong with a recipe across its nodes (`recipe.checks`);
    - `preflight(name, spec, root)`: what of the workspace would fail late and can be told first (`execute.preflight`);
    - `foresee(declaration, declarations, known)`: what outputs that exist already tell of a node that has to be built;
    - `reads(spec, role, sources)`: which files of a source count (`Reads`);
    - `ships()`: digests by name of the files of this program that go into its output; they are part of its keys,
      so that no version has to be raised when such a file changes.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Part of every key. Raise it when `build` would make other bytes from the same preimage."""
    Spec: ClassVar[type]
    produces: ClassVar[str]
    """What its outputs are to others: `layer`, `file`, `image`, `disk`, `initrd`, `verdict`, `tools`."""

    def tools(self, spec: Any) -> tuple[str, ...]:
        """The tools trees this node's build uses, by purpose."""

    def lock(self, spec: Any, locker: Locker) -> Locked:
        """Resolve what is mutable outside to exact files."""

    def build(self, task: Task) -> Outputs:
        """Make the outputs."""


KindT = TypeVar("KindT", bound=Kind)
KindTable = Mapping[str, Kind]
