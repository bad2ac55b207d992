"""What a kernel promises to modules, and whether a module fits it.

A kernel built with symbol versions (CONFIG_MODVERSIONS) has a checksum of the types behind every exported
symbol. It then takes a module of another release as long as all checksums it uses are the same: so these, and
not the kernel's bytes, are what a module depends on. Without them only the very same kernel will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kairosbuild.core.errors import InputError
from kairosbuild.kernels.module import Module

_SHOWN = 6  # symbols named in one message
VERSIONED = "modversions"


@dataclass(frozen=True, slots=True)
class Abi:
    """`flags` are the vermagic's words behind the release; `forced` says that modules need a signature.

    `only` is the digest of the headers of a kernel without symbol versions: nothing less identifies it.
    """

    flags: str
    forced: bool = False
    only: str = ""

    @property
    def versioned(self) -> bool:
        """Whether modules are held to the checksums of symbols and not to the release."""
        return VERSIONED in self.flags.split()

    def json(self) -> dict[str, Any]:
        """The document."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Kernel:
    """What modules are compared with: a name for messages, the release, the promise, the symbols."""

    name: str
    release: str
    abi: Abi
    symbols: Mapping[str, int]


def symbols(text: bytes) -> dict[str, int]:
    """Symbol → checksum out of a Module.symvers. Raises InputError (`bad-symvers`)."""
    found = {}
    for line in text.decode("utf-8", "replace").splitlines():
        columns = line.split("\t")
        try:
            found[columns[1]] = int(columns[0], 16)
        except (IndexError, ValueError):
            raise InputError(f"{line[:80]!r} is no line of a Module.symvers", reason="bad-symvers") from None
    return found


def canonical(text: bytes) -> bytes:
    """A Module.symvers with its lines sorted by symbol: its order is an accident of the build."""
    symbols(text)
    rows = sorted(text.splitlines(), key=lambda line: line.split(b"\t")[1:])
    return b"".join(row + b"\n" for row in rows)


def problems(
    owner: str, modules: Sequence[Module], kernel: Kernel, beside: Iterable[Module] = ()
) -> list[InputError]:
    """Why these modules of the node `owner` would not load; none when they all would.

    `beside` are modules that others bring and that may export what these want.
    """
    offered = {name for one in (*modules, *beside) for name in one.exports}
    found: list[InputError] = []
    for one in modules:
        found += _magic(owner, one, kernel) or (
            *_missing(owner, one, kernel, offered),
            *_versions(owner, one, kernel, offered),
        )
    return found


def _magic(owner: str, one: Module, kernel: Kernel) -> list[InputError]:
    versioned = kernel.abi.versioned and one.versions
    if one.flags == kernel.abi.flags and (versioned or one.release == kernel.release):
        return []
    theirs = f"{kernel.release} {kernel.abi.flags}"
    return [
        InputError(
            f"{owner}: the module {one.name} was compiled for {f'{one.release} {one.flags}'!r}; "
            f"the kernel of {kernel.name!r} is {theirs!r}",
            reason="driver-vermagic",
            hint=f"compile it against {kernel.name!r}, or take the package that was",
        )
    ]


def _missing(owner: str, one: Module, kernel: Kernel, offered: set[str]) -> list[InputError]:
    lacking = sorted(one.wants - kernel.symbols.keys() - offered)
    if not lacking:
        return []
    return [
        InputError(
            f"{owner}: the module {one.name} needs {_some(lacking)}, "
            f"which the kernel of {kernel.name!r} ({kernel.release}) does not have",
            reason="driver-symbol",
            hint="a flavour of the kernel with more drivers may have it, or a kernel with another config",
        )
    ]


def _versions(owner: str, one: Module, kernel: Kernel, offered: set[str]) -> list[InputError]:
    if not kernel.abi.versioned:
        return []
    other = sorted(
        name
        for name, crc in one.versions.items()
        if name not in offered and kernel.symbols.get(name, crc) != crc
    )
    if not other:
        return []
    return [
        InputError(
            f"{owner}: the module {one.name} was compiled against another {_some(other)} "
            f"than the kernel of {kernel.name!r} ({kernel.release}) has",
            reason="driver-version",
            hint=f"compile it against {kernel.name!r}",
        )
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
