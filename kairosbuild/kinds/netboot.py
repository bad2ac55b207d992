"""Kind `netboot`: an image for machines that start from the network.

Kernel and initrd with an iPXE script, and a unified kernel image for firmware that fetches one itself; the
initrd fetches the layers by HTTP from where the script came from, or from `url`, and dm-verity holds them to the
root hashes of the command line, whoever the server is. Over a boot node it installs, as an ISO does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts.checks import complaints, foreseen
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, boot_entry, unified
from kairosbuild.artifacts.installer import installer, listed
from kairosbuild.artifacts.signing import SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.node import UNLOCKED, Known, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import record, ref, text, texts

_SCRIPT = """#!ipxe
kernel {name}.linux initrd={name}.initrd {cmdline}
initrd {name}.initrd
boot
"""


def _complaint(url: str) -> str:
    if not url or re.fullmatch(r"http://[^/\s]+(/\S*)?", url):
        return ""
    return f"{url!r} is no http:// address; layers are verified by their root hashes, the initrd has no TLS"


@dataclass(frozen=True, slots=True)
class NetbootSpec:
    """What a boot server offers."""

    image: str = ref(
        "The image it boots, or a node of kind boot: then `kbuild-node install` writes that to a disk.",
        accepts=("image", "boot"),
    )
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    url: str = text(
        "Where the layers will lie. Without it iPXE has to get its script from there by HTTP, and there is no "
        "unified kernel image for firmware that fetches one itself.",
        "",
        check=_complaint,
    )
    sign: SignSpec | None = record("Sign what firmware starts.", SignSpec, None)
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)
    entry: str = text("Its name.", "os", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Netboot:
    """See the module."""

    name: ClassVar[str] = "netboot"
    version: ClassVar[int] = 7
    Spec: ClassVar[type] = NetbootSpec
    produces: ClassVar[str] = "netboot"

    def tools(self, spec: NetbootSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; the stub and what the initrd is made of; GRUB, for what is installed."""
        return ("image", "boot", "media")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from complaints(declaration, declarations)

    def preflight(self, name: str, spec: NetbootSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules that would not load under the Secure Boot it is signed for."""
        yield from foreseen(declaration, declarations, known)

    def lock(self, spec: NetbootSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers and name them beside kernel, initrd and script."""
        files = tuple(_files(task))
        return {"artifact": task.put_bytes(document("netboot", files))}


def _files(task: Task) -> Iterator[File]:
    spec: NetbootSpec = task.spec
    signs = signing(task)
    stack = stack_of_image(task)
    install = listed(installer(task, stack, spec.cmdline, signs, bios=True))
    more = (f"kbuild.install={[*install][-1]}",) if len(install) > 1 else ()
    entry = boot_entry(task, stack, (*more, *spec.cmdline), network=True)
    script = _SCRIPT.format(name=spec.entry, cmdline=f"{entry.cmdline} kbuild.disk={spec.url or '${cwduri}'}")
    yield File(f"{spec.entry}.ipxe", "netboot.ipxe", task.put_bytes(script.encode()))
    yield File(f"{spec.entry}.linux", "netboot.kernel", entry.kernel)
    yield File(f"{spec.entry}.initrd", "netboot.initrd", entry.initrd)
    if spec.url:
        located = replace(entry, cmdline=f"{entry.cmdline} kbuild.disk={spec.url}")
        yield File(f"{spec.entry}.efi", "uki", task.put_bytes(unified(task, located, signs)))
    if more:
        for name, data in install.items():
            yield File(name, "netboot.install", task.put_bytes(data))
    for name, blob in stack.forms.items():
        yield File(name, "layer.erofs", blob)
