"""The boot entry of a stack: kernel, initrd and command line, and the unified kernel image of them."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.artifacts.signing import Signing
from kairosbuild.artifacts.stack import Stack
from kairosbuild.boot import cpio, initrd, layerfs, uki
from kairosbuild.boot.files import Files, index_of
from kairosbuild.boot.survey import cuts
from kairosbuild.core.canonical import dumps, loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import InputError, NodeError
from kairosbuild.graph.action import Action
from kairosbuild.graph.node import Outputs, Task
from kairosbuild.oci.configuration import image_id

CONSOLE = ("console=tty0", "console=ttyS0,115200")
IN_RECOVERY = ("kbuild.disk=LABEL=kbuild-recovery", "kbuild.recovery")
ENCRYPT = "kbuild.encrypt="  # the argument that says that what is kept is encrypted, and how
RECOVERY = "zz-recovery"  # sorts behind `kbuild`: what is started when nothing else has tries left
PANIC = "panic=5"  # a kernel that dies gives the next entry its turn
_EFI = "usr/lib/systemd/boot/efi"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What a boot loader starts."""

    version: str
    kernel: Blob
    initrd: Blob
    os_release: bytes
    cmdline: str


def boot_entry(
    task: Task,
    stack: Stack,
    cmdline: Sequence[str],
    where: Sequence[str] = (),
    *,
    network: bool = False,
    encryption: bool = False,
    order: str = "kbuild",
) -> BootEntry:
    """The entry for this stack; `where` are the arguments that say where its layers are found.

    `order` is the first thing boot loaders sort by, and equal for all entries of a machine but recovery's.
    """
    kernel = stack.kernel
    layers = layerfs.arguments([one.verity for one in reversed(stack.sealed)], cuts(stack.surveys))
    return BootEntry(
        kernel.version,
        stack.file(kernel.layer, kernel.path),
        initrd_of(task, stack, kernel.version, network=network, encryption=encryption),
        os_release(task, stack) + _identity(stack, order),
        " ".join((*layers, *where, PANIC, *stack.cmdline, *cmdline)),
    )


def entry_document(entry: BootEntry) -> bytes:
    """The entry as a document, for another node to take as it is."""
    return dumps(
        {
            "version": entry.version,
            "kernel": entry.kernel.json(),
            "initrd": entry.initrd.json(),
            "os_release": entry.os_release.decode(errors="replace"),
            "cmdline": entry.cmdline,
        }
    )


def given_entry(task: Task, role: str = "image") -> BootEntry | None:
    """The entry of the boot node in this role; None when an image is there itself."""
    if not (given := task.inputs[role][0].outputs.get("entry")):
        return None
    found = loads(task.path(given).read_bytes())
    kernel, initial = Blob(**found["kernel"]), Blob(**found["initrd"])
    return BootEntry(found["version"], kernel, initial, found["os_release"].encode(), found["cmdline"])


def unified(task: Task, entry: BootEntry, signs: Signing | None = None) -> bytes:
    """The entry as one PE image, signed if need be. Raises `cmdline-too-long`."""
    made = b"".join(_parts(task, entry, {}))
    return signs.unified(made) if signs else made


def unified_with(task: Task, entry: BootEntry, signs: Signing | None, layers: Mapping[str, Blob]) -> Blob:
    """The same with layers behind its initrd, stored. They are written from where they lie: a copy in memory of
    something that large costs more than all else."""
    made = _parts(task, entry, layers)
    if signs:
        return task.put_bytes(signs.unified(b"".join(made)))
    with (task.scratch / "uki").open("xb") as out:
        out.writelines(made)
    return task.put_file(task.scratch / "uki")


def _parts(task: Task, entry: BootEntry, layers: Mapping[str, Blob]) -> list[cpio.Buffer]:
    packed = _mapped(task, entry.initrd)
    behind = initrd.beside({name: _mapped(task, blob) for name, blob in layers.items()}, "layers")
    return uki.parts(
        task.path(loader(task)["stub"]).read_bytes(),
        os_release=entry.os_release,
        cmdline=entry.cmdline,
        uname=entry.version,
        initrd=(packed, bytes(-len(packed) % 4), *behind) if layers else (packed,),
        kernel=(_mapped(task, entry.kernel),),
    )


def _mapped(task: Task, blob: Blob) -> memoryview:
    """A stored file without reading it."""
    with task.path(blob).open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def initrd_of(
    task: Task, stack: Stack, version: str, *, network: bool = False, encryption: bool = False
) -> Blob:
    """The initrd for this kernel: that of the node in the role `initrd`, else the one that all share.

    Raises InputError (`initrd-kernel`) when that node's is for another kernel.
    """
    if not (given := task.inputs.get("initrd")):
        crypt = _tree(task, task.tools("crypt")).read if encryption else None
        more = initrd.More(early=stack.early, network=network, encryption=crypt)
        return shared_initrd(task, stack, version, more)
    made_for = loads(task.path(given[0].outputs["about"]).read_bytes())["kernel"]
    if made_for != version:
        raise InputError(
            f"{task.name}: the initrd of {task.spec.initrd!r} is for the kernel {made_for}, "
            f"and the image of {task.spec.image!r} has {version}",
            reason="initrd-kernel",
            hint="make it of the same image",
        )
    return given[0].outputs["initrd"]


def shared_initrd(task: Task, stack: Stack, version: str, more: initrd.More) -> Blob:
    """The initrd for this kernel, made once for the layers that have its modules and what is asked for."""
    tools, packing = task.tools("boot"), task.tools("image")
    holders = stack.holders(version)

    def make() -> Outputs:
        archive = task.put_bytes(initrd.build(_tree(task, tools).read, stack.files(holders), version, more))
        packer = Action(initrd.COMPRESS, (packing,), {"initrd": archive}, ("initrd",), platform=task.platform)
        return task.execute(packer).outputs

    crypt = [task.tools("crypt").digest] if more.encryption else []
    preimage = {
        "version": version,
        "layers": [one.layer.digest for one in holders],
        "tools": [tools.digest, packing.digest, *crypt],
        "recipe": initrd.recipe(),
        "more": more.json(),
    }
    return task.derive("initrd", initrd.VERSION, preimage, make)["initrd"]


def dracut_initrd(task: Task, stack: Stack, version: str, more: initrd.More) -> Blob:
    """The same by dracut: its programs, drivers and udev, with the shared script to open the root."""
    tools, packing, maker = task.tools("boot"), task.tools("image"), task.tools("dracut")
    holders = stack.holders(version)

    def make() -> Outputs:
        tree = _tree(task, tools).read
        given, words = initrd.for_dracut(tree, stack.files(holders), version, more)
        action = Action(
            ("/bin/sh", "-eu", "/in/dracut.sh", version, *words),
            (maker, *(one.layer for one in holders)),
            {path: task.put_bytes(data) for path, data in given.items()},
            ("archive",),
            platform=task.platform,
        )
        found = cpio.unpack(task.path(task.execute(action).outputs["archive"]).read_bytes())
        archive = task.put_bytes(cpio.pack(sorted(found)))
        packer = Action(initrd.COMPRESS, (packing,), {"initrd": archive}, ("initrd",), platform=task.platform)
        return task.execute(packer).outputs

    preimage = {
        "version": version,
        "layers": [one.layer.digest for one in holders],
        "tools": [tools.digest, packing.digest, maker.digest],
        "recipe": [initrd.recipe(), initrd.dracut_recipe()],
        "more": more.json(),
    }
    return task.derive("initrd-dracut", initrd.VERSION, preimage, make)["initrd"]


def loader(task: Task) -> Outputs:
    """systemd's boot `loader` and `stub`, out of the tools tree."""
    tools = task.tools("boot")

    def make() -> Outputs:
        tree = _tree(task, tools)
        found = {
            "loader": tree.read(f"{_EFI}/systemd-bootx64.efi"),
            "stub": tree.read(f"{_EFI}/linuxx64.efi.stub"),
        }
        if missing := [name for name, content in found.items() if content is None]:
            raise NodeError(f"the tools tree `boot` has no {missing[0]}", reason="missing-tool")
        return {name: task.put_bytes(content) for name, content in found.items() if content is not None}

    return task.derive("boot-loader", 1, {"tools": tools.digest}, make)


def os_release(task: Task, stack: Stack) -> bytes:
    """The topmost os-release of a stack."""
    for number, one in reversed(list(enumerate(stack.surveys))):
        if one.os_release:
            return task.path(stack.file(number, one.os_release)).read_bytes()
    return b"ID=linux\n"


def _identity(stack: Stack, order: str) -> bytes:
    """What a machine reads of an entry: the image's id; a sort key and version that leave order to its name."""
    return f"\nIMAGE_ID={order}\nIMAGE_VERSION=1\nKBUILD_IMAGE={image_id(stack.document)}\n".encode()


def _tree(task: Task, tools: Blob) -> Files:
    tar = task.path(tools)
    return Files([(tar, index_of(tar))])
