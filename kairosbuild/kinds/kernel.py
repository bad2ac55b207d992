"""Kind `kernel`: a kernel and its modules as a layer of their own, all beneath lib/modules/RELEASE.

From a package of a distribution, out of the image of another node, out of a tar, or compiled. No maintainer
script runs and /boot stays empty. Which release it is, its own files say, never this machine. What modules
are compiled and compared with (headers, symbol versions, config) are outputs beside the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import Blob
from kairosbuild.families.below import below, family_of
from kairosbuild.families.family import Below, KernelRequest, System
from kairosbuild.families.table import TABLE
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import UNLOCKED, Locked, Locker, Outputs, Task
from kairosbuild.graph.stack import layer_outputs, stack_of
from kairosbuild.kernels import install, kconfig, lists
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import flag, record, ref, source, text, textmap, texts

if TYPE_CHECKING:
    from contextlib import ExitStack

    from kairosbuild.oci.entry import Entry
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.layer import Item

_SOURCES = ("package", "from", "archive", "tarball", "compile")
_PATIENCE = 6 * 3600.0  # seconds to compile a kernel
_MACHINES = {"amd64": "x86_64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class CompileSpec:
    """A kernel compiled from its source."""

    archive: str = ref("A node whose file is the source, a tar of one folder.", accepts=("file",))
    base: str = text(
        "The target of its make that the configuration begins with.",
        "defconfig",
        pattern="[a-z0-9_]+config",
        example="tinyconfig",
    )
    config: str = source("A whole configuration to begin with instead.", "")
    fragment: str = source("A file of options over it, or a folder of such, in the order of their names.", "")
    options: Mapping[str, str] = textmap(
        "Options over all that, by their names; `n` for off.", {}, example="CONFIG_EROFS_FS: m"
    )
    localversion: str = text("What the release ends with.", "", pattern=r"(-[A-Za-z0-9.+~-]*)?")


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Which kernel: exactly one of package, from, archive, tarball and compile says."""

    package: str = text(
        "The package; one that only names the newest kernel will do.", "", example="linux-image-cloud-amd64"
    )
    version: str = text("Hold it at this version of the package.", "", example="6.12.48-1")
    on: str = ref(
        "The base or packages whose distribution and release it is taken from; without it, Debian.",
        "", accepts=("layer",),
    )  # fmt: skip
    release: str = text("The release it is taken from; without it, that of the base.", "", example="trixie")
    repositories: tuple[str, ...] = texts(
        "Components or repositories of it; without them, those of the base.", ()
    )
    from_: str = ref("A node whose image holds the kernel, such as a base.", "", accepts=("layer",))
    archive: str = ref("A node whose file is a tar with boot/ and lib/modules/.", "", accepts=("file",))
    tarball: str = source("Such a tar in the workspace.", "")
    compile: CompileSpec | None = record("Compile it.", CompileSpec, None)
    only: str = text("The kernel's release, where what it is taken from holds several.", "")
    headers: bool = flag("Yield headers and symbol versions too, for drivers.", True)
    cmdline: tuple[str, ...] = texts(
        "Arguments that it is always started with.", (), check=lists.argument_complaint
    )
    load: tuple[str, ...] = texts("Modules to load when the system starts.", (), check=lists.complaint)
    early: tuple[str, ...] = texts(
        "Modules that the initrd has and loads before the root is there.", (), check=lists.complaint
    )
    blacklist: tuple[str, ...] = texts("Modules that are never loaded.", (), check=lists.complaint)
    options: Mapping[str, str] = textmap("Options of modules.", {}, check=lists.complaint, example="fast=1")


class Kernel:
    """See the module."""

    name: ClassVar[str] = "kernel"
    version: ClassVar[int] = 6
    Spec: ClassVar[type] = KernelSpec
    produces: ClassVar[str] = "layer"

    def tools(self, spec: KernelSpec) -> tuple[str, ...]:
        """A compiler, where it is compiled."""
        return ("kernel",) if spec.compile else ()

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """It comes from one place."""
        given = [
            one
            for one, there in {
                "package": declaration.spec["package"],
                "from": declaration.refs.get("from_"),
                "archive": declaration.refs.get("archive"),
                "tarball": declaration.sources.get("tarball"),
                "compile": declaration.spec["compile"],
            }.items()
            if there
        ]
        if len(given) != 1:
            field = "" if not given or given[-1] == "from" else given[-1]
            yield (
                field,
                f"a kernel is one of {', '.join(_SOURCES)}, not {' and '.join(given) or 'none'}",
                "package: linux-image-amd64" if not given else "leave the others out",
            )

    def lock(self, spec: KernelSpec, locker: Locker) -> Locked:
        """The real kernel's package behind the one that was named, what its modules are in, its headers."""
        if not spec.package:
            return UNLOCKED
        upstream = locker.upstream("on")
        found = below(upstream) if upstream else Below(System("apt", "debian"))
        family = family_of(found)
        request = KernelRequest(spec.package, spec.version, spec.release, spec.repositories, spec.headers)
        locked = family.lock_kernel(request, found, locker)
        return Locked({**locked.data, "family": family.name}, locked.materials)

    def build(self, task: Task) -> Outputs:
        """Sort its files, and write the layer and what goes beside it."""
        from contextlib import ExitStack

        spec: KernelSpec = task.spec
        with ExitStack() as opened:
            kernel = install.arranged(_items(task, opened), task.name, spec.only)
            more = lists.files(spec.load, spec.blacklist, spec.options)
            own = _layer(task, "kernel.tar", {**kernel.files, **{p: _file(p, c) for p, c in more.items()}})
            return {
                **layer_outputs(task, *own),
                **_beside(task, kernel),
                "kernel": task.put_bytes(dumps(_about(task, kernel))),
                "boot": task.put_bytes(dumps(lists.boot(spec.cmdline, spec.early))),
            }


def _beside(task: Task, kernel: install.Installed) -> dict[str, Blob]:
    """The outputs that others depend on: release, config, and what modules are compiled and compared with."""
    found = {"release": task.put_bytes(f"{kernel.release}\n".encode())}
    if (config := kernel.bytes(kernel.path("config"))) is not None:
        found["kconfig"] = task.put_bytes(config)
    if symbols := install.symbols(kernel):
        found["symbols"] = task.put_bytes(symbols)
    if task.spec.headers and kernel.headers:
        tar, _ = _layer(task, "headers.tar", kernel.headers)
        found["headers"] = task.put_file(tar)
    promise = install.promise(kernel, found["headers"].digest if "headers" in found else "")
    found["abi"] = task.put_bytes(dumps({**promise.json(), "folder": kernel.folder}))
    if not task.locked.data:  # else a lock has looked into the packages already
        found["modules"] = task.put_bytes(dumps(install.firmware(kernel)))
    return found


def _about(task: Task, kernel: install.Installed) -> dict[str, Any]:
    data = task.locked.data
    image = next((p for p in data.get("packages", ()) if p["name"] == data["image"]), None)
    package = {"package": image["name"], "package version": image["version"]} if image else {}
    lockdown = {"lockdown": "secure-boot"} if install.locks_down(kernel) else {}
    return {"version": kernel.release, **package, **lockdown}


# -- where it comes from ---------------------------------------------------------------------------


def _items(task: Task, opened: ExitStack) -> Sequence[Item]:
    """Everything that may be of the kernel; files that it lies in are `opened`."""
    import tempfile

    spec: KernelSpec = task.spec
    if spec.package:
        files = [task.path(Blob(m.digest, m.size)) for m in task.locked.materials]
        spool = opened.enter_context(tempfile.TemporaryFile(dir=task.scratch))  # noqa: SIM115 - closed with the rest
        return TABLE[task.locked.data["family"]].unpack(files, spool, install.wanted)
    if spec.from_:
        return _of_stack(task, opened)
    if spec.compile:
        return _of_tar(task, task.path(_compiled(task)), opened)
    if spec.archive:
        return _of_tar(task, task.path(task.inputs["archive"][0].outputs["file"]), opened)
    return _of_tar(task, task.source_path("tarball", ""), opened)


def _of_stack(task: Task, opened: ExitStack) -> list[Item]:
    """The files of a kernel that the image of another node holds."""
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.merge import merge

    stack = [
        (task.path(one.layer), Index.loads(task.path(one.index).read_bytes()))
        for one in stack_of(task, task.inputs["from_"])
    ]
    if len(stack) == 1:
        return _sliced(*stack[0], opened)
    merged = task.scratch / "merged.tar"
    with merged.open("wb") as out:
        index = Index.loads(merge(stack, out, task.epoch))
    return _sliced(merged, index, opened)


def _of_tar(task: Task, tar: Path, opened: ExitStack) -> list[Item]:
    """The files of a tar that nobody vouches for, at their places under merged /usr."""
    from kairosbuild.oci.index import Index
    from kairosbuild.oci.reader import normalise

    made = task.scratch / "normal.tar"
    with tar.open("rb") as stream, made.open("wb") as out:
        index = normalise(stream, out, task.epoch, scratch=task.scratch)
    return [(_moved(entry), content) for entry, content in _sliced(made, Index.loads(index), opened)]


def _moved(entry: Entry) -> Entry:
    """An entry at its place under merged /usr; a relative link leads where it led."""
    import posixpath

    from kairosbuild.sources.deb import merged

    path, target = merged(entry.path, folder=entry.type == "dir"), entry.target
    if entry.type == "hardlink":
        target = merged(target)
    elif entry.type == "symlink" and not target.startswith("/"):
        led = merged(posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), target)))
        target = posixpath.relpath(led, posixpath.dirname(path) or ".")
    return replace(entry, path=path, target=target)


def _sliced(tar: Path, index: Index, opened: ExitStack) -> list[Item]:
    """The wanted members where they lie."""
    from kairosbuild.oci.layer import Slice

    stream = opened.enter_context(tar.open("rb"))
    return [
        (one.entry, Slice(stream.fileno(), one.data) if one.entry.type == "file" else None)
        for one in index
        if install.wanted(one.entry.path)
    ]


def _compiled(task: Task) -> Blob:
    """The tar of a kernel compiled in the sandbox. Raises InputError (`bad-kconfig`)."""
    spec: CompileSpec = task.spec.compile
    parts = [kconfig.read(task.source_path(role, logical).read_bytes(), logical or role) for role, logical in
             _fragments(task)]  # fmt: skip
    wanted = kconfig.merged([*parts, spec.options])
    inputs = {
        "source": task.inputs["compile.archive"][0].outputs["file"],
        "options": task.put_bytes(kconfig.write(wanted)),
        "kernel.sh": task.put_bytes(Path(install.__file__).with_name("kernel.sh").read_bytes()),
    }
    if config := task.sources.get("compile.config"):
        assert config[0].blob is not None
        inputs["config"] = config[0].blob
    machine = _MACHINES[task.platform.split("/")[1]]
    command = ("/bin/sh", "-eu", "/in/kernel.sh", spec.base, machine, spec.localversion)
    tools = task.tools("kernel")

    def make() -> Outputs:
        action = Action(command, (tools,), inputs, ("kernel.tar",), platform=task.platform, timeout=_PATIENCE)
        return task.execute(action).outputs

    preimage = {
        "command": list(command),
        "inputs": {name: blob.digest for name, blob in inputs.items()},
        "tools": tools.digest,
        "epoch": task.epoch,
    }
    return task.derive("compiled-kernel", 1, preimage, make)["kernel.tar"]


def _fragments(task: Task) -> list[tuple[str, str]]:
    files = task.sources.get("compile.fragment", ())
    return [("compile.fragment", one.logical) for one in files if one.type == "file"]


# -- the layer -------------------------------------------------------------------------------------


def _file(path: str, content: bytes) -> Item:
    from kairosbuild.oci.entry import Entry

    return Entry(path, "file", 0o644, size=len(content)), content


def _layer(task: Task, name: str, items: Mapping[str, Item]) -> tuple[Path, bytes]:
    from kairosbuild.oci.layer import write_layer
    from kairosbuild.sources.spool import with_parents

    made = task.scratch / name
    with made.open("wb") as out:
        index = write_layer(with_parents(dict(items)), out, task.epoch)
    return made, index
