"""What a live system brings to install a machine from: its boot entries and the boot loaders that start them.

An ISO has it in its folder `install`. A netboot artifact has each of these files under its sha256, and the list of
them too, whose own the kernel's command line names: whoever the server is, what is installed is what was built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kairosbuild.artifacts import grub
from kairosbuild.artifacts.entry import IN_RECOVERY, RECOVERY, boot_entry, loader, unified
from kairosbuild.artifacts.signing import Signing
from kairosbuild.artifacts.stack import Stack
from kairosbuild.boot import gpt
from kairosbuild.core.canonical import dumps
from kairosbuild.core.digest import of_bytes
from kairosbuild.core.errors import NodeError
from kairosbuild.graph.node import Task

_FIRST = gpt.ALIGN // gpt.SECTOR  # where an installation puts GRUB's own partition, of one MiB


def installer(
    task: Task, stack: Stack, cmdline: Sequence[str], signs: Signing | None, *, bios: bool
) -> dict[str, bytes]:
    """Paths and contents, when a boot node says what is installed; nothing when an image is there itself."""
    if not (made := task.inputs["image"][0].outputs.get("uki")):
        return {}
    kernel = task.path(made).read_bytes()
    rescue = unified(task, boot_entry(task, stack, cmdline, IN_RECOVERY, order=RECOVERY), signs)
    boot = task.path(loader(task)["loader"]).read_bytes()
    files = {"os.efi": kernel, "recovery.efi": rescue, "BOOTX64.EFI": signs.pe(boot) if signs else boot}
    return files | (_for_bios(task, {"os-1": kernel, "recovery": rescue}) if bios else {})


def listed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same under their sha256, and the list of them, the last."""
    found = {of_bytes(data).digest.removeprefix("sha256:"): data for data in files.values()}
    names = {path: of_bytes(data).digest.removeprefix("sha256:") for path, data in files.items()}
    document = dumps(names)
    return {**found, of_bytes(document).digest.removeprefix("sha256:"): document}


def _for_bios(task: Task, kernels: Mapping[str, bytes]) -> dict[str, bytes]:
    sector, core = grub.placed(task, _FIRST)
    if len(core) > gpt.ALIGN:
        raise NodeError("GRUB's core image has more than one MiB", reason="grub-too-large")
    files = {f"grub/esp/{path}": data for path, data in grub.disk_files(kernels).items()}
    return {"grub/sector": sector, "grub/core": core, **files}
