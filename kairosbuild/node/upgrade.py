"""An upgrade: the layers a machine lacks, then what it will remember, then, last, one boot entry.

Each step leaves a machine that starts; whatever the power cuts off is found again, and done again, the next time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kairosbuild.node import delta, secureboot, state, uki
from kairosbuild.node.assess import TRIES
from kairosbuild.node.entries import Entry
from kairosbuild.node.layers import Layers
from kairosbuild.node.machine import Machine
from kairosbuild.node.offer import Offer
from kairosbuild.node.problem import Problem
from kairosbuild.node.registry import Repository
from kairosbuild.node.state import Origin
from kairosbuild.node.uki import Kernel, Layer

_SPARE = 4 << 20  # bytes that stay free on either filesystem
_KERNEL_MOST = 1 << 30

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Done:
    """What an upgrade did: the entry, whether it is new, bytes fetched, and bytes of all of its image."""

    entry: Entry
    new: bool
    fetched: int
    whole: int


def upgrade(
    machine: Machine, offer: Offer, repository: Repository, *, tries: int, again: bool, say: Say
) -> Done:
    """Make an offered image the one that is started next. Raises Problem; the running system is untouched then."""
    with machine.changing():
        remembered = state.load(machine.disk)
        with tempfile.TemporaryDirectory() as scratch:
            kernel_file = _kernel_file(machine, offer, repository, Path(scratch))
            kernel = uki.read(kernel_file)
            _refuse_others(offer, kernel)
            secureboot.refuse_unstartable(kernel_file)
            whole = offer.uki.size + sum(offer.form(one).size for one in kernel.layers)
            if failed := remembered.failure_of(kernel.image):
                if not again:
                    raise Problem(
                        f"{offer.reference} was tried and failed: {failed.why}",
                        reason="failed-before",
                        hint="publish another image, or ask again with --again",
                    )
                remembered = remembered.forgiven(kernel.image)
            _repair_same(machine, kernel, offer, repository, say)
            if (same := _same(machine, kernel)) and not same.exhausted:
                return _kept(machine, same, remembered, tries, repository.fetched, whole)
            _refuse_full(machine, offer, kernel.layers)
            fetch_layers(machine.layers, kernel.layers, offer, repository, say, _near(machine))
            return _entered(machine, offer, kernel_file, kernel, remembered, tries, repository, whole)


def fetch_layers(
    layers: Layers,
    wanted: Iterable[Layer],
    offer: Offer,
    repository: Repository,
    say: Say,
    near: tuple[Layer, ...] = (),
) -> list[Layer]:
    """Bring the layers of these that are missing; one is either whole or absent, however this ends.

    `near` are layers that are here and may have blocks in common.
    """
    missing = layers.missing(wanted)
    for number, layer in enumerate(missing, 1):
        blob = offer.form(layer)
        say(f"layer {number} of {len(missing)}: {layer.root_hash[:12]}, {blob.size >> 10} KiB")
        _fetch(layers, layer, offer, repository, near)
        layers.admit(layer)
        near = (layer, *near)
    return missing


def _fetch(layers: Layers, layer: Layer, offer: Offer, repository: Repository, near: Iterable[Layer]) -> None:
    """By blocks where the registry knows ranges, whole where it does not."""
    blob, part = offer.form(layer), layers.part(layer)
    if layer.hash_offset > delta.BLOCK:
        try:
            here = [(layers.path(one), one) for one in near]
            delta.fetch_layer(repository, blob, layer, part, here)
            return
        except Problem as problem:
            if problem.reason != "registry-no-ranges":
                raise
    part.unlink(missing_ok=True)
    repository.fetch(blob, part)


def repair(machine: Machine, offer: Offer, repository: Repository, *, say: Say) -> list[Layer]:
    """Fetch anew what is damaged of an image's layers, and let its entry be tried again."""
    with machine.changing(), tempfile.TemporaryDirectory() as scratch:
        kernel = uki.read(_kernel_file(machine, offer, repository, Path(scratch)))
        _refuse_others(offer, kernel)
        damaged = machine.layers.damaged(kernel.layers)
        for layer in damaged:
            say(f"layer {layer.root_hash} is damaged or gone")
            machine.layers.path(layer).unlink(missing_ok=True)
        fetch_layers(machine.layers, kernel.layers, offer, repository, say)
        if (same := _same(machine, kernel)) and same.exhausted:
            machine.entries.counted(same, TRIES)
        return damaged


def _near(machine: Machine) -> tuple[Layer, ...]:
    """The layers of every entry, those of the running one first."""
    entries = machine.entries.all()
    entries.sort(key=lambda one: one.kernel.cmdline != machine.cmdline)
    return tuple(dict.fromkeys(layer for one in entries for layer in one.kernel.layers))


def _kernel_file(machine: Machine, offer: Offer, repository: Repository, scratch: Path) -> Path:
    if not 0 < offer.uki.size <= _KERNEL_MOST:
        raise Problem("the kernel image has no sensible size", reason="bad-manifest")
    path = scratch / "kernel.efi"
    try:
        if delta.fetch_kernel(repository, offer.uki, path, [one.path for one in machine.entries.all()]):
            return path
    except Problem as problem:
        if problem.reason != "registry-no-ranges":
            raise
    path.unlink(missing_ok=True)
    repository.fetch(offer.uki, path)
    return path


def _refuse_others(offer: Offer, kernel: Kernel) -> None:
    """The kernel image has to be that of the image asked for, and the artifact has to hold its layers."""
    if offer.image and kernel.image != offer.image:
        raise Problem(
            f"the boot artifact of {offer.reference} belongs to another image",
            reason="wrong-image",
            hint="publish image and boot artifact together",
        )
    for layer in kernel.layers:
        offer.form(layer)


def _refuse_full(machine: Machine, offer: Offer, layers: Iterable[Layer]) -> None:
    missing = machine.layers.missing(layers)
    begun = sum(part.stat().st_blocks * 512 for one in missing if (part := machine.layers.part(one)).exists())
    needed = sum(offer.form(one).size for one in missing) - begun + _SPARE
    if needed > (room := machine.layers.room()):
        raise Problem(
            f"the new layers need {needed >> 20} MiB, and {room >> 20} MiB are free",
            reason="disk-full",
            hint="the disk's layers partition is too small for two versions",
        )
    for leftover in machine.entries.leftovers():
        leftover.unlink()
    found = os.statvfs(machine.entries.folder)
    if offer.uki.size + (1 << 20) > (room := found.f_bavail * found.f_frsize):
        raise Problem(
            f"the boot entry needs {offer.uki.size >> 20} MiB, and the EFI partition has {room >> 20} MiB free",
            reason="esp-full",
            hint="remove what else is on it; it should have room for three entries",
        )


def _repair_same(machine: Machine, kernel: Kernel, offer: Offer, repository: Repository, say: Say) -> None:
    """An entry that ran out of tries gets its layers looked at before it is tried again."""
    if (same := _same(machine, kernel)) and same.exhausted:
        for layer in machine.layers.damaged(kernel.layers):
            say(f"layer {layer.root_hash} is damaged or gone")
            machine.layers.path(layer).unlink(missing_ok=True)
        fetch_layers(machine.layers, kernel.layers, offer, repository, say)
        machine.entries.remove(same)


def _same(machine: Machine, kernel: Kernel) -> Entry | None:
    """The entry that boots this very kernel image already."""
    return next((one for one in machine.entries.all() if one.kernel == kernel), None)


def _kept(
    machine: Machine, same: Entry, remembered: state.State, tries: int, fetched: int, whole: int
) -> Done:
    """An image that is there already is only put first."""
    first = machine.entries.all()[0]
    entry = same if same.path == first.path else machine.entries.first(same, tries)
    origin = remembered.origins.get(same.label, Origin(same.kernel.image))
    state.save(machine.disk, remembered.with_origin(entry.label, origin))
    return Done(entry, False, fetched, whole)


def _entered(
    machine: Machine,
    offer: Offer,
    kernel_file: Path,
    kernel: Kernel,
    remembered: state.State,
    tries: int,
    repository: Repository,
    whole: int,
) -> Done:
    name = "os"
    label = f"{name}-{machine.entries.next_sequence()}"
    origin = Origin(kernel.image, offer.manifest, offer.boot, str(offer.reference))
    state.save(machine.disk, replace(remembered, trying="", complaints=()).with_origin(label, origin))
    os.sync()
    entry = machine.entries.add(kernel_file.read_bytes(), name, tries)
    return Done(entry, True, repository.fetched, whole)
