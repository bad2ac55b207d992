"""A live system writes itself to a disk: partition table, EFI partition, layers, recovery, persistent.

The filesystems are computed by the builder's own modules, so that the image needs no program that makes them.
The partition table is written last: until then the disk starts nothing, and an installation that was cut off is
simply done again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kairosbuild.boot import ext4, fat, gpt
from kairosbuild.core.errors import KbuildError
from kairosbuild.node import machine, netboot, uki
from kairosbuild.node.problem import Problem

MIB = 1 << 20
LIVE = machine.RUN / "disk"
LISTED = "kbuild.install"  # sha256 of the list of what a server has to install
_ESP = 256 * MIB
_STATE = 64 * MIB  # grown to the disk's end at the first start
_SPARE = 64 * MIB
_CHUNK = 4 * MIB
_LOADER = b"timeout 0\nconsole-mode keep\neditor no\n"
_BIOS_BOOT = "bios-boot"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Medium:
    """What a live medium brings: layers by root hash, the boot entries and the boot loader to install."""

    layers: Path
    kernel: Path
    loader: Path
    recovery: Path | None
    grub: Path | None = None  # boot sector, core image and configuration, for machines with a BIOS

    def forms(self, kernel: Path) -> dict[str, Path]:
        """The layers that an entry lists. Raises Problem `layer-missing`."""
        found = {one.root_hash: self.layers / one.root_hash for one in uki.read(kernel).layers}
        for name, path in found.items():
            if not path.is_file():
                raise Problem(f"the medium has no layer {name}", reason="layer-missing")
        return found


def live(cmdline: str, place: Path = LIVE) -> bool:
    """Whether this machine was started from a medium, or a server, that installs."""
    return (place / "install/os.efi").is_file() or bool(uki.argument(cmdline, LISTED))


def medium(cmdline: str = "", place: Path = LIVE) -> Medium | None:
    """The live medium this machine was started from; None when it is not one that installs."""
    if listed := uki.argument(cmdline, LISTED):
        netboot.fetch(uki.argument(cmdline, "kbuild.disk"), listed, place / "install")
    kernel, recovery = place / "install/os.efi", place / "install/recovery.efi"
    if not kernel.is_file():
        return None
    loader, grub = place / "install/BOOTX64.EFI", place / "install/grub"
    rescue = recovery if recovery.is_file() else None
    layers = place / "layers"
    return Medium(
        layers if layers.is_dir() else place, kernel, loader, rescue, grub if grub.is_dir() else None
    )


def install(device: Path, source: Medium, config: str, *, tries: int, say: Say) -> None:
    """Write the system to this disk, all of which is lost. Raises Problem `disk-in-use`, `disk-too-small`."""
    _refuse_used(device)
    try:
        with device.open("r+b") as disk:
            _install(disk, source, config, tries, say)
    except KbuildError as problem:
        raise Problem(problem.message, reason=problem.reason, hint=problem.hint) from problem


def disks(block: Path = Path("/sys/class/block")) -> Iterator[tuple[str, int]]:
    """Disks that can be installed to, the largest first: device and bytes."""
    found = []
    for node in block.iterdir():
        size = int((node / "size").read_text()) * 512
        physical = (node / "device").exists() and not (node / "partition").exists()
        if physical and size and (node / "ro").read_text().strip() == "0" and not node.name.startswith("sr"):
            found.append((f"/dev/{node.name}", size))
    used = set(_mounted())
    yield from sorted(
        ((name, size) for name, size in found if not any(one.startswith(name) for one in used)),
        key=lambda one: (-one[1], one[0]),
    )


def _install(disk: BinaryIO, source: Medium, config: str, tries: int, say: Say) -> None:
    size, forms = disk.seek(0, os.SEEK_END), source.forms(source.kernel)
    rescue = source.forms(source.recovery) if source.recovery else {}
    partitions = _partitions(size, _sizes(forms), _sizes(rescue), bios=source.grub is not None)
    table = _table(gpt.build(size, uuid.uuid4(), partitions), source)
    for at in (
        0,
        size - gpt.ALIGN,
    ):  # what the partitions leave to the table, and to its copy that firmware falls back to
        disk.seek(at)
        disk.write(bytes(gpt.ALIGN))
        _sync(disk)
    for partition in partitions:
        say(f"writing {partition.name}, {partition.size // MIB} MiB")
        if partition.name == "esp":
            _write_esp(disk, partition, source, tries)
        elif source.grub and partition.name == _BIOS_BOOT:
            disk.seek(partition.start)
            disk.write((source.grub / "core").read_bytes())
        else:
            label, files, texts = {
                "kbuild-layers": ("kbuild-layers", forms, {}),
                "recovery": ("kbuild-recovery", rescue, {}),
                "persistent": ("kbuild-state", {}, {"config.yaml": config.encode()} if config else {}),
            }[partition.name]
            _write_ext4(disk, partition, label, files, texts)
        _sync(disk)
    for offset, data in reversed(table):
        disk.seek(offset)
        disk.write(data)
        _sync(disk)


def _table(table: Iterable[tuple[int, bytes]], source: Medium) -> list[tuple[int, bytes]]:
    """The partition table, with GRUB's boot sector in front of it where the medium has one."""
    sector = (source.grub / "sector").read_bytes() if source.grub else b""
    return [(at, sector + data[len(sector) :] if at == 0 else data) for at, data in table]


def _partitions(
    size: int, layers: Iterable[int], recovery: Iterable[int], *, bios: bool
) -> list[gpt.Partition]:
    """The table: the layers have room for two versions and more, and what is left becomes persistent.

    GRUB's own partition is the first, where its boot sector looks for it.
    """
    wanted = [(_BIOS_BOOT, gpt.BIOS_BOOT, MIB)] if bios else []
    wanted += [("esp", gpt.ESP, _ESP), ("kbuild-layers", gpt.LAYERS, 2 * ext4.need(list(layers)) + _SPARE)]
    if rescue := list(recovery):
        wanted.append(("recovery", gpt.RECOVERY, ext4.need(rescue)))
    wanted.append(("persistent", gpt.PERSISTENT, _STATE))
    found, at = [], gpt.ALIGN
    for name, kind, least in wanted:
        length = least + -least % MIB
        found.append(gpt.Partition(kind, uuid.uuid4(), name, at, length))
        at += length
    if at + gpt.ALIGN > size:
        raise Problem(
            f"the disk has {size // MIB} MiB, and {(at + gpt.ALIGN) // MIB} MiB are needed",
            reason="disk-too-small",
            hint="choose a larger one",
        )
    return found


def _write_esp(disk: BinaryIO, partition: gpt.Partition, source: Medium, tries: int) -> None:
    files = {
        "EFI/BOOT/BOOTX64.EFI": source.loader.read_bytes(),
        f"EFI/Linux/os-1+{tries}.efi": source.kernel.read_bytes(),
        "loader/loader.conf": _LOADER,
    }
    if source.recovery:
        files["EFI/Linux/recovery.efi"] = source.recovery.read_bytes()
    if source.grub:
        files |= _grub_files(source.grub)
    _clear(disk, partition)
    volume = fat.Volume(
        partition.size, "ESP", uuid.uuid4().int & 0xFFFFFFFF, hidden=partition.start // gpt.SECTOR
    )
    for offset, data in fat.build(volume, files):
        disk.seek(partition.start + offset)
        disk.write(data)


def _grub_files(folder: Path) -> dict[str, bytes]:
    """What of a medium's folder for GRUB is to lie on the EFI partition: all that is in its folder `esp`."""
    top = folder / "esp"
    return {str(one.relative_to(top)): one.read_bytes() for one in sorted(top.rglob("*")) if one.is_file()}


def _write_ext4(
    disk: BinaryIO,
    partition: gpt.Partition,
    label: str,
    files: Mapping[str, Path],
    texts: Mapping[str, bytes],
) -> None:
    sizes = {**_sized(files), **{name: len(data) for name, data in texts.items()}}
    found = ext4.layout(ext4.Volume(partition.size, label, uuid.uuid4()), sizes)
    _clear(disk, partition)
    for offset, data in found.metadata:
        disk.seek(partition.start + offset)
        disk.write(data)
    for name, runs in found.files.items():
        content = files[name].open("rb") if name in files else None
        rest = texts.get(name, b"")
        for offset, length in runs:
            disk.seek(partition.start + offset)
            if content is None:
                disk.write(rest[:length])
                rest = rest[length:]
            else:
                _copy(content, disk, length)
        if content is not None:
            content.close()


def _clear(disk: BinaryIO, partition: gpt.Partition) -> None:
    """Zeros where a filesystem keeps its books: what is computed leaves out what is zero."""
    disk.seek(partition.start)
    left = partition.size
    while left > 0:
        disk.write(bytes(min(_CHUNK, left)))
        left -= _CHUNK


def _copy(source: BinaryIO, disk: BinaryIO, length: int) -> None:
    while length > 0 and (data := source.read(min(_CHUNK, length))):
        disk.write(data)
        length -= len(data)


def _sized(files: Mapping[str, Path]) -> dict[str, int]:
    return {name: path.stat().st_size for name, path in files.items()}


def _sizes(files: Mapping[str, Path]) -> list[int]:
    return list(_sized(files).values())


def _refuse_used(device: Path) -> None:
    for one in _mounted():
        if one.startswith(str(device)):
            raise Problem(
                f"{device} is in use: {one} is mounted", reason="disk-in-use", hint="choose another disk"
            )


def _mounted() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.startswith("/dev/"):
            yield line.split()[0]


def _sync(disk: BinaryIO) -> None:
    disk.flush()
    os.fsync(disk.fileno())
