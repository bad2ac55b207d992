"""What a start says about an image: the one that runs is healthy or not, the one that does not run failed.

The boot loader counts; this reads what it counted, says why where anybody left a reason, and clears away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kairosbuild.node import durable, state, uki
from kairosbuild.node.entries import Entry
from kairosbuild.node.machine import Machine
from kairosbuild.node.problem import Problem
from kairosbuild.node.state import Failure, Origin, State

TRIES = 3
"""How often a new entry may fail."""
TRIES_BLESSED = 5
"""How often one that worked may fail to start, in a row, before another has its turn."""

_SILENT = "it never came as far as this program: its kernel panicked or hung, or its initrd failed"
_STARTED = "it started, but went down or hung before its health checks were done"


@dataclass(frozen=True, slots=True)
class Report:
    """The entries by their parts, the first of each."""

    running: Entry | None
    fallback: Entry | None
    next: Entry | None
    recovery: Entry | None
    state: State


def report(machine: Machine) -> Report:
    """Which entry is which."""
    entries = machine.entries.all()
    current = machine.running()
    remembered = state.load(machine.disk)
    systems = [one for one in entries if not one.kernel.recovery]
    others = [one for one in systems if not one.exhausted and one != current]
    upcoming = next((one for one in systems if not one.exhausted), None)
    fallback = next((one for one in others if one != upcoming or current is None), None)
    if fallback is None and upcoming != current and current is not None and not current.kernel.recovery:
        fallback = current  # what runs is what the next one falls back to
    return Report(
        current, fallback, upcoming, next((one for one in entries if one.kernel.recovery), None), remembered
    )


def begin(machine: Machine) -> list[Failure]:
    """At the start of a machine: note what failed to start, and that this one is being tried."""
    with machine.changing():
        remembered = state.load(machine.disk)
        found, current = [], machine.running()
        for entry in machine.entries.all():
            if entry.exhausted and entry != current and not entry.kernel.recovery:
                failure = _failure(machine, entry, remembered)
                known = remembered.failure_of(entry.kernel.image)
                if known is None or not known.why:
                    found.append(failure)
                    remembered = remembered.with_failure(failure)
                origin = remembered.origins.get(entry.label)
                rescued = current is None or current.kernel.recovery  # there it is all that can be repaired
                if not rescued and not (origin and origin.blessed):
                    machine.entries.remove(entry)
        durable.remove(machine.disk / state.FAILURE)
        if current is not None:
            remembered = _tried(remembered, current)
        state.save(machine.disk, remembered)
        return found


def bless(machine: Machine) -> list[str]:
    """The running entry works: it gets its tries back, and what no entry needs is removed; the layers gone."""
    with machine.changing():
        entry, remembered = machine.running(), state.load(machine.disk)
        if entry is None or entry.kernel.recovery:
            return []
        origin = remembered.origins.get(entry.label, Origin(entry.kernel.image))
        remembered = remembered.forgiven(entry.kernel.image)
        remembered = remembered.with_origin(entry.label, replace(origin, blessed=True))
        state.save(machine.disk, replace(remembered, trying="", complaints=()))
        machine.entries.counted(entry, TRIES_BLESSED)
        return collect(machine) if not origin.blessed else []


def complain(machine: Machine, why: str, *, up: bool = True) -> bool:
    """The running entry is not healthy. Whether it should give the machine away: before it was blessed, or never `up`."""
    with machine.changing():
        entry, remembered = machine.running(), state.load(machine.disk)
        if entry is None or entry.kernel.recovery:
            return False
        origin = remembered.origins.get(entry.label)
        if up and origin and origin.blessed:
            machine.entries.counted(entry, TRIES_BLESSED)
            return False
        state.save(
            machine.disk, replace(remembered, trying=entry.label, complaints=(*remembered.complaints, why))
        )
        return True


def collect(machine: Machine) -> list[str]:
    """Remove older entries than the running one and its fallback, and the layers nobody lists."""
    found = report(machine)
    kept = [one for one in (found.running, found.fallback, found.next, found.recovery) if one]
    for entry in machine.entries.all():
        if entry not in kept and not entry.kernel.recovery:
            machine.entries.remove(entry)
    remaining = machine.entries.all()
    labels = {one.label for one in remaining}
    remembered = state.load(machine.disk)
    origins = {label: one for label, one in remembered.origins.items() if label in labels}
    state.save(machine.disk, replace(remembered, origins=origins))
    return machine.layers.collect(layer for one in remaining for layer in one.kernel.layers)


def rollback(machine: Machine, tries: int = TRIES) -> Entry:
    """Make the entry that is fallen back to the one that is started next. Raises Problem `no-fallback`."""
    with machine.changing():
        found = report(machine)
        target = found.fallback
        if target is None or target == found.next:
            raise Problem(
                "there is no other image to go back to",
                reason="no-fallback",
                hint="an upgrade keeps the image before; `kbuild-node status` shows what there is",
            )
        if missing := machine.layers.missing(target.kernel.layers):
            names = ", ".join(one.root_hash for one in missing)
            raise Problem(f"{target.label} cannot start: layer {names} is gone", reason="layer-missing")
        remembered = state.load(machine.disk)
        origin = remembered.origins.get(target.label, Origin(target.kernel.image))
        ahead = f"{target.name}-{machine.entries.next_sequence()}"
        state.save(machine.disk, remembered.with_origin(ahead, origin))
        return machine.entries.first(target, tries)


def _failure(machine: Machine, entry: Entry, remembered: State) -> Failure:
    origin = remembered.origins.get(entry.label, Origin(entry.kernel.image))
    layers, why = state.initrd_failure(machine.disk)
    if not why or layers != uki.argument(entry.kernel.cmdline, "kbuild.layers"):
        why = _reason(machine, entry, remembered)
    return Failure(entry.kernel.image, entry.label, why, origin.reference, origin.manifest)


def _reason(machine: Machine, entry: Entry, remembered: State) -> str:
    """The best that can be said: a health check's words, else layers that are not what they were, else how far it came."""
    if remembered.trying == entry.label and remembered.complaints:
        return "; ".join(dict.fromkeys(remembered.complaints))
    if damaged := machine.layers.damaged(entry.kernel.layers):
        return ", ".join(f"layer {one.root_hash} is damaged or gone" for one in damaged)
    return _STARTED if remembered.trying == entry.label else _SILENT


def _tried(remembered: State, entry: Entry) -> State:
    if remembered.trying == entry.label:
        return remembered
    return replace(remembered, trying=entry.label, complaints=())
