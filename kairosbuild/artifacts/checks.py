"""What is known of an artifact from the recipe alone, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kairosbuild.core.errors import InputError, KbuildError
from kairosbuild.graph.node import Known
from kairosbuild.recipe.declaration import Declaration

Declarations = Mapping[str, Declaration]
_ENFORCING = ("module.sig_enforce", "module.sig_enforce=1", "lockdown=integrity", "lockdown=confidentiality")


def complaints(declaration: Declaration, declarations: Declarations) -> Iterator[tuple[str, str, str]]:
    """What the recipe alone tells of whatever boots an image."""
    yield from _initrd(declaration, declarations)
    yield from _unsigned(declaration, declarations)


def _unsigned(declaration: Declaration, declarations: Declarations) -> Iterator[tuple[str, str, str]]:
    """Modules nobody signed, in an image that is started with the word that none such be loaded."""
    image, why = _image(declaration, declarations), _enforced(declaration)
    for name in image.refs.get("layers", ()) if image and why else ():
        one = declarations.get(name)
        if one is not None and one.kind == "drivers" and _has_modules(one):
            yield (
                "cmdline",
                f"{why!r} has the kernel refuse modules without a signature, and those of {name!r} in "
                f"{declaration.refs['image'][0]!r} have none",
                f"list a node of kind sign-modules of {name!r} in the image instead",
            )


def _initrd(declaration: Declaration, declarations: Declarations) -> Iterator[tuple[str, str, str]]:
    """An initrd that is made for another kernel than the artifact starts, as far as the recipe tells."""
    for name in declaration.refs.get("initrd", ()):
        if (made := declarations.get(name)) is None or made.kind != "initrd":
            continue
        theirs, ours = _image(made, declarations), _image(declaration, declarations)
        if theirs is None or ours is None or theirs == ours:
            continue
        kernels = _kernels(theirs, declarations), _kernels(ours, declarations)
        if all(kernels) and kernels[0] != kernels[1]:
            yield (
                "initrd",
                f"{name!r} is for the kernel {_listed(kernels[0])} of {theirs.name!r}, and {ours.name!r} has "
                f"{_listed(kernels[1])}",
                f"name an initrd of {ours.name!r}",
            )


def _image(declaration: Declaration, declarations: Declarations) -> Declaration | None:
    """The image that a node is made of, itself or by a node of kind boot."""
    found = _named(declaration, declarations)
    return _named(found, declarations) if found is not None and found.kind == "boot" else found


def _named(declaration: Declaration, declarations: Declarations) -> Declaration | None:
    return next((declarations.get(name) for name in declaration.refs.get("image", ())), None)


def _kernels(image: Declaration, declarations: Declarations) -> tuple[str, ...]:
    """The kernel nodes among an image's layers, signed ones by the name of what is signed."""
    names = [
        _signed_of(name, declarations[name]) for name in image.refs.get("layers", ()) if name in declarations
    ]
    return tuple(name for name in names if name in declarations and declarations[name].kind == "kernel")


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(map(repr, names))


def kernel_complaints(declaration: Declaration, declarations: Declarations) -> Iterator[tuple[str, str, str]]:
    """One kernel, and drivers for no other; signed ones where the kernel is told to ask for signatures."""
    layers = [
        (name, declarations[name]) for name in declaration.refs.get("layers", ()) if name in declarations
    ]
    kernels = _kernels(declaration, declarations)
    if len(kernels) > 1 and not declaration.spec["several_kernels"]:
        names = " and ".join(map(repr, kernels))
        yield "layers", f"{names} are {len(kernels)} kernels", "keep one, or set several_kernels: true"
    for name, one in layers:
        drivers = declarations.get(_signed_of(name, one), one)
        if drivers.kind != "drivers":
            continue
        for kernel in drivers.refs.get("kernel", ()):
            if kernel not in kernels:
                yield (
                    "layers",
                    f"{name!r} is for the kernel {kernel!r}, which is not in this image",
                    f"list {kernel!r}, or let {name!r} be for another",
                )
            elif one.kind == "drivers" and _has_modules(one) and (why := _enforced(declarations[kernel])):
                yield (
                    "layers",
                    f"{name!r} has modules without a signature, and the kernel {kernel!r} is told {why}",
                    f"list a node of kind sign-modules of {name!r} instead",
                )


# -- what the kernel's own configuration adds: known once it is there ------------------------------


def unsigned(owner: str, drivers: str, kernel: str, modules: Sequence[str] = ()) -> InputError:
    """Modules that nobody signed in an image whose kernel takes none such, ever."""
    return InputError(
        f"{owner}: {_those(drivers, modules)} no signature, and the kernel of {kernel!r} takes none without "
        "(its configuration has CONFIG_MODULE_SIG_FORCE, or forces lockdown)",
        reason="image-unsigned",
        hint=f"list a node of kind sign-modules of {drivers!r} in the image instead",
    )


def locked_out(owner: str, drivers: str, kernel: str, modules: Sequence[str] = ()) -> InputError:
    """The same in what is signed for Secure Boot, under which the kernel locks itself down."""
    return InputError(
        f"{owner} is signed for Secure Boot, under which the kernel of {kernel!r} takes no module without a "
        f"signature (CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT), and {_those(drivers, modules)} none",
        reason="artifact-unsigned",
        hint=f"list a node of kind sign-modules of {drivers!r} in the image instead, with a certificate that the "
        "firmware's db has",
    )


def _those(drivers: str, modules: Sequence[str]) -> str:
    return (
        f"the modules {', '.join(modules)} of {drivers!r} have"
        if modules
        else f"the modules of {drivers!r} have"
    )


def foreseen_in_image(image: Declaration, declarations: Declarations, known: Known) -> Iterator[KbuildError]:
    """What an image would be refused for, as far as kernels that are there already tell."""
    for drivers, kernel in _nobody_signed(image, declarations):
        if (said := known(kernel, "abi")) and said["forced"]:
            yield unsigned(image.name, drivers, kernel)


def foreseen(artifact: Declaration, declarations: Declarations, known: Known) -> Iterator[KbuildError]:
    """The same for what boots an image and is signed."""
    image = _image(artifact, declarations) if artifact.spec.get("sign") else None
    for drivers, kernel in _nobody_signed(image, declarations) if image else ():
        if (said := known(kernel, "kernel")) and "lockdown" in said:
            yield locked_out(artifact.name, drivers, kernel)


def locked_out_of(owner: str, image: Mapping[str, Any]) -> Iterator[KbuildError]:
    """The same of the image as it was built, by its document."""
    if found := image.get("unsigned"):
        for drivers, modules in found["modules"].items():
            yield locked_out(owner, drivers, found["kernel"], modules)


def _nobody_signed(image: Declaration, declarations: Declarations) -> Iterator[tuple[str, str]]:
    """The drivers of an image whose modules are compiled here, and the kernel each is for."""
    for name in image.refs.get("layers", ()):
        one = declarations.get(name)
        if one is not None and one.kind == "drivers" and (one.spec["build"] or one.spec["dkms"]):
            yield from ((name, kernel) for kernel in one.refs.get("kernel", ()) if kernel in declarations)


# -- names -----------------------------------------------------------------------------------------


def _signed_of(name: str, one: Declaration) -> str:
    """The node whose modules a node signs; its own name when it signs none."""
    return next(iter(one.refs.get("of", ())), name) if one.kind == "sign-modules" else name


def _has_modules(drivers: Declaration) -> bool:
    return any(drivers.spec[what] for what in ("build", "dkms", "packages", "prebuilt"))


def _enforced(declaration: Declaration) -> str:
    """The argument for a kernel that makes it refuse modules without a signature, or ""."""
    return next((one for one in declaration.spec.get("cmdline", ()) if one in _ENFORCING), "")
