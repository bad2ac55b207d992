"""What families have in common: a resolver's step in the base's own tree, an installer's in the stack, rows and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Any, Protocol

from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.families.below import tree
from kairosbuild.families.family import Below, DriversRequest, Request
from kairosbuild.graph.action import Action, LayerRef
from kairosbuild.graph.node import Locker, Material, Task

if TYPE_CHECKING:
    from kairosbuild.sources.stanza import Package

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""What all but Debian call an architecture."""


class Puts(Protocol):
    """Who can store bytes: a `Task`, and a `Locker`."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store these bytes."""


def architecture(platform: str) -> str:
    """What all but Debian call the architecture of a platform."""
    name = platform.split("/")[1]
    return ARCHITECTURES.get(name, name)


def check_words(request: Request, word: Pattern[str], hint: str) -> None:
    """Refuse what a client would take for an option. Raises InputError (`package-name`)."""
    for one in (*request.install, *request.remove):
        if not word.fullmatch(one):
            raise InputError(f"{one!r} is not the name of a package", reason="package-name", hint=hint)


def refuse_removals(client: str, removed: Iterable[str], request: Request) -> None:
    """Nothing is removed that nobody asked to remove. Raises InputError (`package-removal`)."""
    if surprising := sorted(set(removed) - set(request.remove)):
        raise InputError(
            f"to do that, {client} would remove {' '.join(surprising)}",
            reason="package-removal",
            hint="list it under `remove` if that is wanted",
        )


def unknown(name: str, names: Iterable[str]) -> InputError:
    """The error for a package that nobody has."""
    near = [known for known in names if known[:2] == name[:2]]
    hint = nearest(name, near) if near else ""
    return InputError(f"there is no package {name!r}", reason="package-unknown", hint=hint)


def no_drivers(request: DriversRequest) -> InputError:
    """The error of families that compile none."""
    return InputError(
        f"{request.name}: packages of drivers, and the compiler for them, are looked up in distributions of the family apt only",
        reason="drivers-family",
        hint="name a node with gcc and make as `toolchain`, and let the kernel be `from` a node with its headers; compiled "
        "modules come by `prebuilt`, firmware by a node of kind packages",
    )


def materials(packages: Iterable[Package]) -> tuple[Material, ...]:
    """These files, to be fetched by whoever builds."""
    return tuple(Material(package.uri, package.digest, package.size) for package in packages)


def fetched(
    packages: Sequence[Any],
    of: Callable[[Any], Package],
    verify: Callable[[Path, Any], object],
    locker: Locker,
) -> None:
    """Fetch all of them, several at a time, and let each be verified."""

    def one(described: Any) -> None:
        package = of(described)
        verify(locker.fetch(package.uri, digest=package.digest, size=package.size), described)

    with ThreadPoolExecutor(max_workers=8) as pool:
        for done in [pool.submit(one, described) for described in packages]:
            done.result()


def lists(into: Puts, words: Mapping[str, Iterable[str]]) -> dict[str, Blob]:
    """Lists as inputs of a step, a word a line."""
    return {name: into.put_bytes("".join(f"{w}\n" for w in some).encode()) for name, some in words.items()}


def resolve(
    command: tuple[str, ...],
    inputs: Mapping[str, Blob],
    outputs: tuple[str, ...],
    below: Below,
    locker: Locker,
) -> dict[str, str]:
    """What the base's own client says, run in the base's own tree, of which nothing is kept."""
    action = Action(
        command,
        (tree(below, locker),),
        inputs,
        outputs,
        cwd="/",
        layer=True,
        drop=("*",),
        platform=locker.platform,
    )
    done = locker.execute(action).outputs
    return {name: locker.path(done[name]).read_text("utf-8", "replace") for name in outputs}


def install(
    task: Task,
    command: tuple[str, ...],
    inputs: Mapping[str, Blob],
    below: Sequence[LayerRef],
    drop: tuple[str, ...],
    env: Mapping[str, str] | None = None,
) -> Action:
    """The step in which the stack's own client installs these files."""
    return Action(
        command,
        tuple(one.layer for one in below),
        inputs,
        env=env or {},
        cwd="/",
        layer=True,
        drop=drop,
        platform=task.platform,
    )
