"""Kind `uki`: an image as one unified kernel image, which firmware starts without anything beside it.

The layers are in its initrd, in their boot form, and are mounted out of memory; or, with `layers: disk`, it is the
boot entry alone, for a machine that has the layers. When it is signed, boot loader and enrolment files come with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts.checks import complaints, foreseen
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, boot_entry, loader, unified_with
from kairosbuild.artifacts.signing import SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.core.errors import KbuildError
from kairosbuild.graph.node import UNLOCKED, Known, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, record, ref, text, texts


@dataclass(frozen=True, slots=True)
class UkiSpec:
    """A unified kernel image."""

    image: str = ref("The image it boots.", accepts=("image",))
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    layers: str = choice(
        "Where the layers are: `inside` of it, or on the `disk` of the machine.", ("inside", "disk"), "inside"
    )
    sign: SignSpec | None = record("Sign what firmware starts.", SignSpec, None)
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)
    entry: str = text("Its name.", "os", pattern="[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Uki:
    """See the module."""

    name: ClassVar[str] = "uki"
    version: ClassVar[int] = 6
    Spec: ClassVar[type] = UkiSpec
    produces: ClassVar[str] = "uki"

    def tools(self, spec: UkiSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; the stub and what the initrd is made of."""
        return ("image", "boot")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from complaints(declaration, declarations)

    def preflight(self, name: str, spec: UkiSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules that would not load under the Secure Boot it is signed for."""
        yield from foreseen(declaration, declarations, known)

    def lock(self, spec: UkiSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, put them behind the initrd, assemble."""
        spec: UkiSpec = task.spec
        signs = signing(task)
        stack = stack_of_image(task)
        inside = spec.layers == "inside"
        entry = boot_entry(task, stack, spec.cmdline, ("kbuild.disk=memory",) if inside else ())
        made = unified_with(task, entry, signs, stack.forms if inside else {})
        files = [File(f"{spec.entry}.efi", "uki", made)]
        if signs:
            boot = signs.pe(task.path(loader(task)["loader"]).read_bytes())
            files.append(File("systemd-bootx64.efi", "loader", task.put_bytes(boot)))
            files += [
                File(path.rpartition("/")[2], "enrolment", task.put_bytes(data))
                for path, data in signs.enrolled.items()
            ]
        return {"uki": made, "artifact": task.put_bytes(document("uki", files))}
