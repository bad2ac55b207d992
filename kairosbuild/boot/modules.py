"""Which kernel modules an initrd needs, found from what each module says of itself.

Nothing of depmod is asked: dependencies, soft ones included, and aliases stand in the modules' own
.modinfo, so the result depends on the module files that are used and on nothing else.
"""

from __future__ import annotations

import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kairosbuild.boot import elf
from kairosbuild.core.errors import KbuildError

ALWAYS = (
    "loop",
    "dm-mod",
    "dm-verity",
    "erofs",
    "overlay",
    "ext4",
    "sha256",
    "crc32c",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "vfat",  # the EFI partition, for a machine whose image has nothing that loads modules
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "nls_utf8",
)
"""Loaded on every machine, in this order: what the layered root itself is made of."""

WATCHDOGS = (
    "i6300esb",
    "lpc_ich",  # this and the next bring iTCO_wdt's device
    "i2c_i801",
    "iTCO_wdt",
    "wdat_wdt",
    "sp5100_tco",
    "hpwdt",
    "softdog",  # where there is none of these; asked for by name
)
"""What restarts a machine that hangs."""

BY_DEVICE = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "ahci",
    "ata_piix",
    "nvme",
    "xhci-pci",
    "ehci-pci",
    "uhci-hcd",
    "usb-storage",
    "uas",
    "sdhci-pci",
    "sdhci-acpi",
    "mmc_block",
    "hv_vmbus",
    "hv_storvsc",
    "vmw_pvscsi",
    "mptspi",
    "mptsas",
    "mpt3sas",
    "megaraid_sas",
    "xen-blkfront",
    "vmd",
    "isofs",
    "efivarfs",
    *WATCHDOGS,
)
"""Loaded when a device asks for them by its modalias."""

ENCRYPTION = ("dm-crypt", "xts", "algif_skcipher", "aesni-intel", "tpm_tis", "tpm_crb")
"""For a machine whose persistent filesystem is encrypted and opened by its TPM."""

NETWORK = (
    "af_packet",
    "virtio_net",
    "vmxnet3",
    "hv_netvsc",
    "xen-netfront",
    "ena",
    "gve",
    "e1000",
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "i40e",
    "iavf",
    "ice",
    "r8169",
    "tg3",
    "bnx2",
    "bnxt_en",
    "mlx4_en",
    "mlx5_core",
    "atlantic",
)
"""Network cards, for a machine that fetches its layers."""

_SUFFIX = re.compile(r"\.ko(\.xz|\.zst|\.gz)?$")


@dataclass(frozen=True, slots=True)
class Module:
    """A module for the initrd: name (underscores), uncompressed object, what must be loaded before it."""

    name: str
    image: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


def canonical(name: str) -> str:
    """A module's name as the kernel prints it."""
    return name.replace("-", "_")


def name_of(path: str) -> str | None:
    """The module's name for a file name, None for what is no module."""
    base = path.rpartition("/")[2]
    return canonical(_SUFFIX.sub("", base)) if _SUFFIX.search(base) else None


def closure(
    wanted: Iterable[str], paths: Mapping[str, str], builtin: frozenset[str], read: Callable[[str], bytes]
) -> list[Module]:
    """The wanted modules that exist and all they need, each after what it needs.

    `paths` maps a module's name to its file. What the kernel has built in needs no file; a wanted module
    that is nowhere is left out, as kernels differ; a *needed* one is the error `missing-module`.
    """
    done: dict[str, Module] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in done or name in builtin or name in trail:
            return
        if name not in paths:
            raise KbuildError(
                f"kernel module {trail[-1]} needs {name}, which no layer holds", reason="missing-module"
            )
        module = _load(name, expand(paths[name], read(paths[name])), paths)
        for need in module.needs:
            visit(need, (*trail, name))
        done[name] = module

    for name in map(canonical, wanted):
        if name in paths:
            visit(name, ())
    return list(done.values())


def expand(path: str, data: bytes) -> bytes:
    """The object in a module file, whatever it is packed with."""
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return zlib.decompress(data, 31)
    if path.endswith(".zst"):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def depmod(modules: Sequence[Module], builtin: frozenset[str]) -> dict[str, str]:
    """`modules.dep` and `modules.alias` for busybox, for modules that lie beside them."""
    by_name = {module.name: module for module in modules}
    dep = "".join(f"{m.name}.ko:{''.join(f' {n}.ko' for n in _all_needs(m, by_name))}\n" for m in modules)
    alias = "".join(f"alias {a} {m.name}\n" for m in modules for a in m.aliases)
    return {
        "modules.dep": dep,
        "modules.alias": alias,
        "modules.builtin": "".join(f"{b}.ko\n" for b in sorted(builtin)),
    }


def _all_needs(module: Module, by_name: Mapping[str, Module]) -> list[str]:
    """Everything below a module; busybox loads from the end of the line, as depmod writes it."""
    found: dict[str, None] = {}
    stack = [n for n in module.needs if n in by_name]
    while stack:
        name = stack.pop(0)
        found.pop(name, None)
        found[name] = None
        stack += [n for n in by_name[name].needs if n in by_name]
    return list(found)


def _load(name: str, image: bytes, paths: Mapping[str, str]) -> Module:
    info = elf.modinfo(image)
    hard = [canonical(n) for key, value in info if key == "depends" for n in value.split(",") if n]
    soft = [canonical(n) for key, value in info if key == "softdep" for n in _before(value)]
    needs = dict.fromkeys([*(n for n in soft if n in paths), *hard])
    return Module(name, image, tuple(needs), tuple(value for key, value in info if key == "alias"))


def _before(softdep: str) -> list[str]:
    """The names of a softdep's `pre:` part."""
    found: list[str] = []
    part = ""
    for word in softdep.split():
        if word.endswith(":"):
            part = word
        elif part == "pre:":
            found.append(word)
    return found
