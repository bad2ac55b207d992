"""What a family of distributions has to answer, so that the kinds `packages` and `kernel` need not know it.

Adding a family is its file here, a line in `families/table.py`, a recipe and a row in `docs/families.md`.
`lock` runs the distribution's own resolver, offline, over metadata that we fetched and verified by the
distribution's signatures; what it chose is looked up there again, so that the resolver decides what is
installed and never what a file is. `install` is one action in the stack that stands below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locked, Locker, Material, Task

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

Keep = Callable[[str], bool]
"""Whether a path of a package is wanted."""


@dataclass(frozen=True, slots=True)
class System:
    """What the bottom of a stack says it is: its family, and of os-release(5) what a family goes by."""

    family: str = ""
    id: str = ""
    like: tuple[str, ...] = ()
    version: str = ""
    codename: str = ""

    def json(self) -> dict[str, Any]:
        """The form this takes in a lock."""
        return {**asdict(self), "like": list(self.like)}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> System:
        """Read that form."""
        return cls(**{**value, "like": tuple(value["like"])})


@dataclass(frozen=True, slots=True)
class Below:
    """What a stack is made of, as far as it is known before anything of it is built.

    `layers` are those of the image at its bottom (none where a family bootstrapped it), `packages` the files
    put on it since, in their order, `removed` the names of what was taken away again, `repositories` where
    its packages come from, in the family's own form.
    """

    system: System
    layers: tuple[Material, ...] = ()
    packages: tuple[Material, ...] = ()
    removed: frozenset[str] = frozenset()
    repositories: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be installed and removed. `release` and `repositories` are "" and () for those of the base."""

    install: tuple[str, ...]
    remove: tuple[str, ...] = ()
    weak: bool = False
    release: str = ""
    repositories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """Which kernel: a package that holds one or names one, and its version where it is held."""

    package: str
    version: str = ""
    release: str = ""
    repositories: tuple[str, ...] = ()
    headers: bool = True


@dataclass(frozen=True, slots=True)
class DriversRequest:
    """What a node `name` of drivers wants for the kernel of the node `kernel`, by their words in a recipe."""

    name: str
    kernel: str
    dkms: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    firmware: tuple[str, ...] = ()
    firmware_packages: tuple[str, ...] = ()
    compiles: bool = False
    repositories: tuple[str, ...] = ()


class Family(Protocol):
    """A family. Implementations are stateless; heavy modules are imported where they are used."""

    name: ClassVar[str]
    databases: ClassVar[tuple[str, ...]]
    """Where its package database may lie: what `boot/survey.py` knows an installation by as well."""
    distributions: ClassVar[frozenset[str]]
    """Values of ID and ID_LIKE in os-release(5) that mean this family, where several have such a database."""

    def lock(self, request: Request, below: Below, locker: Locker) -> Locked:
        """Resolve to exact files. `data` has `packages` (name, version, arch, digest, size) in the materials'
        order, `removed` (names) and `repositories`, and whatever else `install` needs. A large set is cut into `parts`.

        Raises InputError: `package-name`, `package-unknown`, `package-conflict`, `package-removal`; HostError:
        `bad-signature`, and those of a fetch.
        """

    def install(self, task: Task, part: Locked, below: Sequence[LayerRef]) -> Action:
        """The layer step that installs what was locked, or a part of it (see `families/parts.py`), reproducibly:
        what differs between runs is in `drop`."""

    def lock_kernel(self, request: KernelRequest, below: Below, locker: Locker) -> Locked:
        """The package of a real kernel, and those its modules are in. `data` has `packages` as above and
        `image`, the name of the one that stands for the kernel; and, where headers are wanted and the archive
        has those of exactly this kernel, `headers` (rows as in `packages`, their materials behind those of the
        packages) and `compiler`, the package that compiles modules for it. Raises as `lock` does, and
        `kernel-package`.
        """

    def lock_drivers(self, request: DriversRequest, kernel: Locked, locker: Locker) -> Locked:
        """What a kernel that was locked (by this family, or not at all) needs beside it.

        `data` has `packages` (each with its `use`: dkms, prebuilt or firmware), `toolchain` (rows; materials in
        the order of both) and `asked`: what firmware each module named asks for, None when only the built
        kernel can say. Raises InputError: `drivers-headers`, `drivers-dkms`, `drivers-release`, `firmware-module`,
        `firmware-missing`, `firmware-packages`, `drivers-family`; and as `lock` does.
        """

    def unpack(self, files: Sequence[Path], spool: BinaryIO, keep: Keep) -> list[Item]:
        """The wanted files of these packages, as a tree; no script is run. Contents go to `spool`."""
