"""Kind `boot`: what a machine needs to start an image, as one artifact: kernel image and all layers as it mounts them.

Nodes upgrade from it: they find it as a referrer of the image, and fetch the layers they lack. A disk that
names it has the very same boot entry, so that machines installed from either agree on what they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kairosbuild.artifacts.checks import complaints, foreseen
from kairosbuild.artifacts.document import File, document
from kairosbuild.artifacts.entry import CONSOLE, ENCRYPT, boot_entry, entry_document, unified
from kairosbuild.artifacts.signing import SignSpec, key_complaints, signing
from kairosbuild.artifacts.stack import stack_of_image
from kairosbuild.boot.survey import PLACES
from kairosbuild.core.errors import KbuildError, nearest
from kairosbuild.graph.node import UNLOCKED, Known, Locked, Locker, Outputs, Task
from kairosbuild.recipe.declaration import Declaration
from kairosbuild.recipe.fields import choice, record, ref, text, texts


def _places(given: Iterable[str]) -> str:
    for place in given:
        if place not in PLACES:
            return f"{place!r} is no writable place; {nearest(place, PLACES)}"
    return ""


def _folders(given: Iterable[str]) -> str:
    for path in given:
        top = path.partition("/")[0]
        if any(part in ("", ".", "..") for part in path.split("/")) or "," in path or " " in path:
            return f"{path!r} is no plain path; write it as var/lib/containers"
        if top not in PLACES or "/" not in path:
            return f"{path!r} lies in no writable place; those are {', '.join(PLACES)}"
    return ""


@dataclass(frozen=True, slots=True)
class EncryptSpec:
    """The persistent filesystem in LUKS2, opened by the machine's TPM."""

    recovery: str = choice(
        "The recovery key: `print` it on the console when it is made, once; `keep` it on the encrypted filesystem, "
        "for `kbuild-node encryption` to show; `none`.",
        ("print", "keep", "none"),
        "print",
    )
    pcrs: str = text(
        "PCRs that have to be as they were at the first start, beside the signed policy of PCR 11; 7 is Secure "
        "Boot's state and keys.",
        "7",
        pattern=r"(?:\d{1,2}(?:\+\d{1,2})*)?",
    )


@dataclass(frozen=True, slots=True)
class BootSpec:
    """An image as machines start it."""

    image: str = ref("The image.", accepts=("image",))
    initrd: str = ref("An initrd of its own instead of the one that all share.", "", accepts=("initrd",))
    persistent: tuple[str, ...] = texts(
        "Places whose changes outlive a restart, on the filesystem kbuild-state: any of etc, var, home, root, "
        "opt, srv. The others are as the image has them after each start.",
        (),
        check=_places,
        example="[etc, var, home, root]",
    )
    binds: tuple[str, ...] = texts(
        "Folders that are plain folders of the persistent partition, not overlays: for containers, say.",
        (),
        check=_folders,
        example="[var/lib/containers]",
    )
    encrypt: EncryptSpec | None = record(
        "Encrypt what is kept: at a machine's first start its persistent partition becomes LUKS2, bound to its TPM and "
        "to images signed by the same PCR key.",
        EncryptSpec,
        None,
    )
    sign: SignSpec | None = record("Sign what firmware starts.", SignSpec, None)
    cmdline: tuple[str, ...] = texts("Kernel arguments, after those that find the root.", CONSOLE)


class Boot:
    """See the module."""

    name: ClassVar[str] = "boot"
    version: ClassVar[int] = 10
    Spec: ClassVar[type] = BootSpec
    produces: ClassVar[str] = "boot"

    def tools(self, spec: BootSpec) -> tuple[str, ...]:
        """mkfs.erofs and zstd; the stub and what the initrd is made of."""
        return ("image", "boot", "crypt") if spec.encrypt else ("image", "boot")

    def check(
        self, name: str, declaration: Declaration, declarations: Mapping[str, Declaration]
    ) -> Iterator[tuple[str, str, str]]:
        """What is known before anything is built."""
        yield from complaints(declaration, declarations)
        yield from _encryption_complaints(declaration)

    def preflight(self, name: str, spec: BootSpec, root: Path) -> Iterator[KbuildError]:
        """What is known of its keys before anything runs."""
        yield from key_complaints(name, spec, root)

    def foresee(
        self, declaration: Declaration, declarations: Mapping[str, Declaration], known: Known
    ) -> Iterator[KbuildError]:
        """Modules that would not load under the Secure Boot it is signed for."""
        yield from foreseen(declaration, declarations, known)

    def lock(self, spec: BootSpec, locker: Locker) -> Locked:
        """Nothing is mutable."""
        return UNLOCKED

    def build(self, task: Task) -> Outputs:
        """Seal the layers, assemble the kernel image, list both."""
        spec: BootSpec = task.spec
        signs = signing(task)
        stack = stack_of_image(task)
        entry = boot_entry(task, stack, spec.cmdline, state(spec), encryption=spec.encrypt is not None)
        kernel = task.put_bytes(unified(task, entry, signs))
        files = [File("os.efi", "uki", kernel)]
        files += [File(name, "layer.erofs", blob) for name, blob in stack.forms.items()]
        return {
            "artifact": task.put_bytes(document("boot", files)),
            "uki": kernel,
            "entry": task.put_bytes(entry_document(entry)),
            "of": task.inputs["image"][0].outputs["image"],
        }


def _encryption_complaints(declaration: Declaration) -> Iterator[tuple[str, str, str]]:
    """What encryption takes."""
    spec = declaration.spec
    if not spec["encrypt"]:
        return
    if not declaration.sources.get("sign.pcr_public"):
        yield "encrypt", "the TPM opens it to a signed policy", "sign: {pcr_public: …, pcr_key: …, …}"
    if not (spec["persistent"] or spec["binds"]):
        yield "encrypt", "nothing is kept that could be encrypted", "persistent: [etc, var, home, root]"
    if declaration.refs.get("initrd"):
        yield "encrypt", "an initrd of one's own has nothing to open it with", "leave `initrd` out"


def state(spec: BootSpec) -> tuple[str, ...]:
    """The kernel arguments that say what is kept."""
    found = []
    if spec.persistent:
        found.append("kbuild.keep=" + ",".join(sorted(spec.persistent)))
    if spec.binds:
        found.append("kbuild.bind=" + ",".join(sorted(spec.binds)))
    if spec.encrypt:
        found.append(f"{ENCRYPT}{spec.encrypt.recovery}:{spec.encrypt.pcrs}")
    return tuple(found)
