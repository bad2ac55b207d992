"""Kind `drivers`: firmware and modules for one kernel, as a layer; compiled where they have to be.

It is keyed on what the kernel promises (its release and the checksums of its symbols), not on the kernel's
bytes, and a compilation is remembered by the checksums alone: a patch of the kernel that leaves them as they
are compiles no module again. docs/kernel.md says why that is safe and where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError, raise_problems
from kairosbuild.families.family import DriversRequest
from kairosbuild.families.table import TABLE
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs, stack_of
from kairosbuild.kernels import abi, compiling, lists, module, signature
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import recordmap, ref, source, text, textmap, texts

if TYPE_CHECKING:
    from kairosbuild.oci.layer import Item

_PATIENCE = 3600.0  # seconds for one compilation
_LABEL = "[a-z0-9][a-z0-9._-]*"


def _labels(names: Mapping[str, Any]) -> str:
    import re

    return next((f"{name!r} is no plain name" for name in names if not re.fullmatch(_LABEL, name)), "")


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Modules to compile: exactly one of `source` and `archive` says from what."""

    source: str = source("A folder of the workspace with a kbuild Makefile.", "")
    archive: str = ref("A node whose file is a tar of such a folder.", "", accepts=("file",))
    folder: str = text("The folder in it that has the Makefile, as drivers/net.", "")
    make: Mapping[str, str] = textmap("Variables for make.", {}, example="m")


@dataclass(frozen=True, slots=True)
class PrebuiltSpec:
    """Modules that are compiled: exactly one of `source` and `archive` says where they are."""

    source: str = source("A module of the workspace, or a folder with some.", "")
    archive: str = ref(
        "A node whose file is a package (.deb, .rpm) or a tar with them.", "", accepts=("file",)
    )


@dataclass(frozen=True, slots=True)
class DriversSpec:
    """What a machine needs beside its kernel."""

    kernel: str = ref(
        "The kernel that all of it is for, a node of kind kernel.",
        accepts=("layer",), by=("release", "symbols", "abi", "modules"),
    )  # fmt: skip
    firmware: tuple[str, ...] = texts(
        "Modules, for which what they ask for is taken, or firmware files by name or glob.",
        (),
        example="iwlwifi",
    )
    firmware_packages: tuple[str, ...] = texts(
        "The packages that firmware is looked for in; without it, the archive's lists say which.", ()
    )
    build: Mapping[str, BuildSpec] = recordmap(
        "Modules to compile from source, by a name of yours.", BuildSpec, {}, check=_labels
    )
    dkms: tuple[str, ...] = texts("Packages of sources for DKMS.", (), example="v4l2loopback-dkms")
    toolchain: str = ref(
        "The node in whose root modules are compiled, such as packages with gcc and make; without it, the compiler that "
        "the headers of Debian's kernels name.",
        "", accepts=("layer",),
    )  # fmt: skip
    packages: tuple[str, ...] = texts("Packages with modules that are compiled already.", ())
    prebuilt: Mapping[str, PrebuiltSpec] = recordmap(
        "Modules that are compiled already and in no repository, by a name of yours; their own word counts.",
        PrebuiltSpec, {}, check=_labels,
    )  # fmt: skip
    repositories: tuple[str, ...] = texts("Components the packages come from, beside the kernel's.", ())
    load: tuple[str, ...] = texts("Modules to load when the system starts.", (), check=lists.complaint)
    early: tuple[str, ...] = texts(
        "Modules that the initrd has and loads before the root is there.", (), check=lists.complaint
    )
    blacklist: tuple[str, ...] = texts("Modules that are never loaded.", (), check=lists.complaint)
    options: Mapping[str, str] = textmap("Options of modules.", {}, check=lists.complaint, example="fast=1")


class Drivers:
    """See the module."""

    name: ClassVar[str] = "drivers"
    version: ClassVar[int] = 1
    Spec: ClassVar[type] = DriversSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: DriversSpec) -> tuple[str, ...]:
        """None: the compiler is the one that the kernel's own headers name, out of the same archive."""
        return ()

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """It is for a kernel, and every compilation has one source."""
        spec = declaration.spec
        for kernel in declaration.refs.get("kernel", ()):
            if kernel in declarations and declarations[kernel].kind != "kernel":
                kind = declarations[kernel].kind
                yield "kernel", f"{kernel!r} is of kind {kind}", "name a node of kind kernel"
        for role in (f"{field}.{label}" for field in ("build", "prebuilt") for label in spec[field]):
            given = [f"{role}.{what}" for what in ("source", "archive")]
            count = sum(bool(declaration.sources.get(one) or declaration.refs.get(one)) for one in given)
            if count != 1:
                yield role, "give exactly one of source and archive", ""
        if declaration.refs.get("toolchain") and not (spec["build"] or spec["dkms"]):
            yield "toolchain", "nothing is compiled in it", "build or dkms"
        if not any(spec[what] for what in ("firmware", "build", "dkms", "packages", "prebuilt", "load", "early",
                                           "blacklist", "options", "firmware_packages")):  # fmt: skip
            yield "", "it asks for nothing", "firmware, build, dkms, packages or prebuilt"

    def lock(self, spec: DriversSpec, locker: Locker) -> Locked:
        """The packages of all that is asked for, and a compiler where something is compiled."""
        request = DriversRequest(
            locker.name,
            spec.kernel,
            spec.dkms,
            spec.packages,
            spec.firmware,
            spec.firmware_packages,
            compiles=bool(spec.build or spec.dkms) and not spec.toolchain,
            repositories=spec.repositories,
        )
        ((_, _, kernel),) = locker.upstream("kernel")
        if spec.toolchain and kernel.data.get("packages") and not kernel.data.get("headers"):
            raise _no_headers(locker.name, spec.kernel)
        _refuse_fetched(spec, kernel, locker)
        if not (request.compiles or spec.dkms or spec.packages or spec.firmware or spec.firmware_packages):
            return Locked()
        return TABLE[kernel.data.get("family", "apt")].lock_drivers(request, kernel, locker)

    def build(self, task: Task) -> Outputs:
        """Compile, compare with the kernel, choose firmware, write the layer."""
        import tempfile

        from kairosbuild.families import firmware, prebuilt

        kernel = _kernel(task)
        modules = [*_compiled(task, kernel), *prebuilt.modules(task, kernel, _rows(task, "prebuilt"))]
        raise_problems([*_twice(task, modules), *abi.problems(task.name, modules, kernel)])
        spec: DriversSpec = task.spec
        folder = f"{loads(_bytes(task, 'abi'))['folder']}{kernel.release}/updates"
        files = {f"{folder}/{one.name}.ko": one.image for one in modules}
        files |= lists.files(spec.load, spec.blacklist, spec.options)
        made = task.scratch / "drivers.tar"
        with tempfile.TemporaryFile(dir=task.scratch) as spool, made.open("wb") as out:
            index = _written(
                task, [*map(_file, files.items()), *firmware.taken(task, _rows(task, "firmware"), spool)], out
            )
        said = [{"name": one.name, "signed": signature.signed(one.image)} for one in modules]
        return {
            **layer_outputs(task, made, index),
            "drivers": task.put_bytes(dumps({"kernel": kernel.release, "modules": said})),
            "boot": task.put_bytes(dumps(lists.boot((), spec.early))),
        }


def _kernel(task: Task) -> abi.Kernel:
    """What the kernel promises. Raises InputError (`drivers-symbols`) when it says nothing of it."""
    outputs = task.inputs["kernel"][0].outputs
    spec: DriversSpec = task.spec
    needed = spec.build or spec.dkms or spec.packages or spec.prebuilt
    if needed and "symbols" not in outputs:
        raise InputError(
            f"{task.name}: {spec.kernel!r} has no symbol versions to hold modules against",
            reason="drivers-symbols",
            hint="it has them with its headers: headers: true, and a source that has such",
        )
    promised = loads(_bytes(task, "abi"))
    return abi.Kernel(
        spec.kernel,
        _bytes(task, "release").decode().strip(),
        abi.Abi(promised["flags"], promised["forced"], promised["only"]),
        abi.symbols(_bytes(task, "symbols")) if needed else {},
    )


def _bytes(task: Task, output: str) -> bytes:
    return task.path(task.inputs["kernel"][0].outputs[output]).read_bytes()


def _rows(task: Task, use: str) -> list[Blob]:
    """The packages that were locked for this use."""
    rows = task.locked.data.get("packages", ())
    return [Blob(one["digest"], one["size"]) for one in rows if one["use"] == use]


# -- compiling -------------------------------------------------------------------------------------


def _compiled(task: Task, kernel: abi.Kernel) -> list[module.Module]:
    spec: DriversSpec = task.spec
    found = []
    for label, one in sorted(spec.build.items()):
        inputs, what = _sources(task, f"build.{label}")
        job = {"sources": what, "folder": one.folder, "make": dict(one.make)}
        command = compiling.from_sources(kernel.release, one.folder, one.make)
        found += _compilation(task, kernel, job, command, inputs, ())
    if spec.dkms:
        debs = _rows(task, "dkms")
        job = {"dkms": [one.digest for one in debs]}
        command = compiling.from_dkms(kernel.release, task.platform)
        found += _compilation(task, kernel, job, command, {}, debs)
    return found


def _compilation(
    task: Task,
    kernel: abi.Kernel,
    job: Mapping[str, Any],
    command: tuple[str, ...],
    inputs: Mapping[str, Blob],
    dkms: Sequence[Blob],
) -> list[module.Module]:
    """The modules of one compilation, done once for all kernels that promise the same."""
    tools = _toolchain(task)
    outputs = task.inputs["kernel"][0].outputs
    if "headers" not in outputs:
        raise _no_headers(task.name, kernel.name)

    fresh: list[str] = []

    def make() -> Outputs:
        fresh.append(kernel.release)
        root = [*_root(task, tools), outputs["headers"], *([_tree(task, dkms, "usr/src/")] if dkms else [])]
        staged = {**inputs, compiling.SCRIPT: task.put_bytes(compiling.script())}
        action = Action(
            command, tuple(root), staged, (compiling.OUTPUT,), platform=task.platform, timeout=_PATIENCE
        )
        try:
            return task.execute(action).outputs
        except NodeError as error:
            error.message = (
                f"{task.name}: nothing for the kernel of {kernel.name!r} ({kernel.release}): {error.message}"
            )
            raise

    preimage = compiling.depends_on(
        kernel.abi, outputs["symbols"].digest, kernel.release, job, [one.digest for one in tools]
    )
    made = task.derive("driver-modules", compiling.VERSION, preimage, make)
    found = compiling.modules_of(task.path(made[compiling.OUTPUT]).read_bytes())
    names = ", ".join(one.name for one in found)
    how = "compiled against" if fresh else "compiled before, for a kernel with the symbols of"
    task.note(f"{names}: {how} {kernel.release}")
    return found


def _no_headers(owner: str, kernel: str) -> InputError:
    return InputError(
        f"{owner}: {kernel!r} has no headers to compile modules against",
        reason="drivers-headers",
        hint="it brings them when it is `from` a node that has them installed, as by kernel-devel or linux-headers",
    )


def _toolchain(task: Task) -> list[Blob]:
    """What compiles: the layers of the node that was named, or packages."""
    if named := task.inputs.get("toolchain"):
        return [one.layer for one in stack_of(task, named)]
    return [Blob(one["digest"], one["size"]) for one in task.locked.data["toolchain"]]


def _root(task: Task, tools: Sequence[Blob]) -> Sequence[Blob]:
    """The same as layers to run in."""
    return tools if task.inputs.get("toolchain") else [_tree(task, tools)]


def _sources(task: Task, role: str) -> tuple[dict[str, Blob], Any]:
    """What stands in /in for a compilation, and what of it goes into its key."""
    if archive := task.inputs.get(f"{role}.archive"):
        blob = archive[0].outputs["file"]
        return {"source": blob}, blob.digest
    files = task.sources[f"{role}.source"]
    links = [one.logical for one in files if one.type == "link"]
    if links or any(not one.logical for one in files):
        raise InputError(
            f"{task.name}: {role}.source is a file or has links: {links}",
            reason="drivers-source",
            hint="name a folder of plain files",
        )
    staged = {f"source/{one.logical}": one.blob for one in files if one.blob}
    return staged, [[one.logical, one.blob.digest] for one in files if one.blob]


def _tree(task: Task, debs: Sequence[Blob], only: str = "") -> Blob:
    """These packages' files as a layer, made once for them."""
    from kairosbuild.sources.tree import write_part, write_tree

    paths = [task.path(one) for one in debs]

    def make() -> Outputs:
        tar = task.scratch / "tree.tar"
        with tar.open("wb") as out:
            if only:
                index = write_part(paths, out, task.scratch, lambda path: path.startswith(only))
            else:
                index = write_tree(paths, out, task.scratch, task.platform.split("/")[1])
        return {"layer": task.put_file(tar), "index": task.put_bytes(index)}

    preimage = {"debs": [one.digest for one in debs], "only": only}
    return task.derive("driver-tree", 1, preimage, make)["layer"]


# -- what comes compiled ---------------------------------------------------------------------------


def _refuse_fetched(spec: DriversSpec, kernel: Locked, locker: Locker) -> None:
    """Prebuilt modules whose file is known before anything is built, held against the kernel's packages."""
    from kairosbuild.families.apt_drivers import refuse_unfit

    found = {}
    for label in spec.prebuilt:
        for kind, _, locked in locker.upstream(f"prebuilt.{label}.archive"):
            if kind == "fetch":
                (file,) = locked.materials
                path = locker.fetch(file.uri, digest=file.digest, size=file.size)
                found[f"{locker.name}: prebuilt.{label}"] = path
    if found:
        refuse_unfit(found, spec.kernel, kernel, locker, alone=not (spec.build or spec.dkms))


# -- the layer -------------------------------------------------------------------------------------


def _twice(task: Task, modules: Sequence[module.Module]) -> list[InputError]:
    names = [one.name for one in modules]
    return [
        InputError(f"{task.name}: there are two modules {name}", reason="drivers-twice")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]


def _file(file: tuple[str, bytes]) -> Item:
    from kairosbuild.oci.entry import Entry

    path, content = file
    return Entry(path, "file", 0o644, size=len(content)), content


def _written(task: Task, items: Sequence[Item], out: BinaryIO) -> bytes:
    from kairosbuild.oci.layer import write_layer
    from kairosbuild.sources.spool import with_parents

    placed = {entry.path: (entry, content) for entry, content in items}
    return write_layer(with_parents(placed), out, task.epoch, flat_time=True)
