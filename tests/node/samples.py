"""Machines made of folders, and images for them: real kernel image files and real sealed layers, small ones."""

import random
import uuid
from pathlib import Path

from boot_samples import stub
from machine_registry import MachineRegistry, digest_of

from kairosbuild.artifacts.grub import disk_files
from kairosbuild.boot import grub, layerfs, uki, verity
from kairosbuild.node import assess, upgrade
from kairosbuild.node.http import Access
from kairosbuild.node.machine import Machine
from kairosbuild.node.offer import find
from kairosbuild.node.reference import parse
from kairosbuild.node.registry import Repository
from kairosbuild.node.upgrade import Done


class Image:
    """An image of layers by seed: equal seeds are equal layers."""

    def __init__(self, scratch: Path, *seeds: int, more: str = "") -> None:
        self.forms: dict[str, bytes] = {}
        sealed = []
        for seed in seeds:
            path = scratch / f"layer{seed}"
            path.write_bytes(random.Random(seed).randbytes(4096 * 200 + seed))
            found = verity.append(path, uuid.UUID(int=seed))
            sealed.append(found)
            self.forms[found.root_hash] = path.read_bytes()
        self.config = f"configuration of {seeds} {more}".encode()
        self.id = digest_of(self.config)
        self.cmdline = " ".join([*layerfs.arguments(sealed, {}), "panic=5", *more.split()])
        self.kernel = uki.assemble(
            stub(room=0x800),
            os_release=f'ID=linux\nPRETTY_NAME="Linux {seeds}"\nKBUILD_IMAGE={self.id}\n'.encode(),
            cmdline=self.cmdline,
            uname="6",
            initrd=b"initrd",
            kernel=b"kernel " * 1000,
        )


def installed(folder: Path, image: Image, *, entry: str = "os-1+3.efi", bios: bool = False) -> Machine:
    """A machine as its disk leaves the factory, started; with `bios` by GRUB."""
    for name in ("disk", "esp/EFI/Linux"):
        (folder / name).mkdir(parents=True)
    for name, data in image.forms.items():
        (folder / "disk" / name).write_bytes(data)
    (folder / "esp/EFI/Linux" / entry).write_bytes(image.kernel)
    for path, data in disk_files({"os-1": image.kernel}).items() if bios else ():
        (folder / "esp" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "esp" / path).write_bytes(data)
    return machine(folder, image)


def machine(folder: Path, image: Image) -> Machine:
    """The machine while it runs this image."""
    return Machine(folder / "disk", folder / "esp", image.cmdline, "", folder / "lock")


def started(folder: Path, *images: Image) -> Machine:
    """What the boot loader does: take the first entry with tries left, count it down, start it."""
    entries = machine(folder, images[0]).entries
    first = next(one for one in entries.all() if not one.exhausted)
    image = next(one for one in images if one.kernel == first.path.read_bytes())
    if first.left is not None and (folder / "esp" / grub.CONFIGURATION).exists():
        environment, row = folder / "esp" / grub.ENVIRONMENT, grub.variable(first.label)
        values = grub.variables(environment.read_bytes())
        values[row] = "x" + values.get(row, "")
        environment.write_bytes(grub.environment(values))
        told = (folder / f"esp/{grub.ENTRIES}/{first.label}.cfg").read_text()
        assert f"arguments='{image.cmdline}'" in told
    elif first.left is not None:
        counted = f"{first.label}+{first.left - 1}-{first.done + 1}.efi"
        first.path.rename(first.path.with_name(counted))
    return machine(folder, image)


def healthy(folder: Path, *images: Image) -> Machine:
    """A start that goes well."""
    here = started(folder, *images)
    assess.begin(here)
    assess.bless(here)
    return here


def upgraded(here: Machine, registry: MachineRegistry, tag: str = "b", **how: bool) -> Done:
    """`kbuild-node upgrade` of this tag."""
    repository, offer = offered(registry, tag)
    return upgrade.upgrade(
        here, offer, repository, tries=3, again=how.get("again", False), say=lambda text: None
    )


def offered(registry: MachineRegistry, tag: str):
    reference = parse(f"{registry.host}/os:{tag}")
    repository = Repository(reference, Access(), sleep=lambda seconds: None)
    return repository, find(reference, repository, "linux/amd64", lambda repository, manifest: None)
