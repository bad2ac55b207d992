"""`kbuild-node`: the verbs of a machine. Exit codes: 0 done, 1 it failed, 2 the input is wrong, 3 the environment is."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kairosbuild.node import assess, encryption, extending, machine, settings
from kairosbuild.node.entries import Entry
from kairosbuild.node.machine import Machine
from kairosbuild.node.problem import Problem

_INPUT = {
    "bad-reference",
    "bad-config",
    "bad-place",
    "no-disk",
    "no-fallback",
    "no-extension",
    "not-an-extension",
    "other-kernel",
    "other-system",
    "failed-before",
    "not-bootable",
    "not-startable",
    "unknown-verb",
}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit code."""
    asked = _parser().parse_args(words)
    try:
        return int(asked.verb(asked) or 0)
    except Problem as problem:
        print(f"kbuild-node: {problem}", file=sys.stderr)
        return 2 if problem.reason in _INPUT else 3 if problem.reason.startswith("registry-") else 1
    except OSError as problem:
        print(f"kbuild-node: {problem}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "kbuild-node", description="What this machine runs, and what it runs next."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _status_verb(verbs)
    _change_verbs(verbs)
    _service_verbs(verbs)
    extending.add_verb(verbs)
    encryption.add_verb(verbs)
    return parser


def _status_verb(verbs: Any) -> None:
    one = verbs.add_parser(
        "status", help="which image runs, which is next, which is fallen back to, what failed"
    )
    one.add_argument("--json", action="store_true", help="as a document")
    one.add_argument("--verify", action="store_true", help="read every layer and say which are damaged")
    one.set_defaults(verb=_status)


def _change_verbs(verbs: Any) -> None:
    one = verbs.add_parser("upgrade", help="make an image of a registry the one that is started next")
    one.add_argument(
        "reference",
        nargs="?",
        default="",
        help="HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:DIGEST; by default what the image or its origin names",
    )
    one.add_argument("--again", action="store_true", help="try an image that failed before")
    one.add_argument("--reboot", action="store_true", help="restart into it")
    one.add_argument("--plain-http", action="store_true", help="speak to this registry without TLS")
    one.set_defaults(verb=_upgrade)
    one = verbs.add_parser("rollback", help="make the image before the one that is started next")
    one.add_argument("--reboot", action="store_true", help="restart into it")
    one.set_defaults(verb=_rollback)
    one = verbs.add_parser("repair", help="fetch damaged layers of an image anew")
    one.add_argument("reference", nargs="?", default="", help="the image; by default where it came from")
    one.add_argument("--plain-http", action="store_true", help="speak to this registry without TLS")
    one.set_defaults(verb=_repair)


def _service_verbs(verbs: Any) -> None:
    one = verbs.add_parser(
        "install", help="write the system of this live medium to a disk, all of which is lost"
    )
    one.add_argument(
        "--device", default="", help="the disk, or `auto` for the largest; asked for when none is given"
    )
    one.add_argument(
        "--config", default="", metavar="FILE", help="the configuration of the installed machine"
    )
    one.add_argument("--reboot", action="store_true", help="restart into it")
    one.set_defaults(verb=_install)
    one = verbs.add_parser(
        "reset", help="give up what the machine changed: its places are as the image has them"
    )
    one.add_argument("--keep", action="append", default=[], metavar="PLACE", help="a place that is not wiped")
    one.add_argument("--reboot", action="store_true", help="restart, which is when it happens")
    one.set_defaults(verb=_reset)
    one = verbs.add_parser("recovery", help="start the recovery system the next time, once")
    one.add_argument("--reboot", action="store_true", help="restart into it")
    one.set_defaults(verb=_recovery)
    one = verbs.add_parser("config", help="the machine's configuration: validate FILE, show, apply, schema")
    one.add_argument("what", choices=("validate", "show", "apply", "schema"))
    one.add_argument("file", nargs="?", default="", help="the file to validate")
    one.set_defaults(verb=_config)
    about = "(the image's own service) note this start, check the machine's health, keep the image"
    verbs.add_parser("start", help=about).set_defaults(verb=_start)


# -- verbs ---------------------------------------------------------------------------------------


def _status(asked: argparse.Namespace) -> None:
    here = machine.here()
    with here.reading():
        document = status(here, verify=asked.verify)
    print(json.dumps(document, indent=1) if asked.json else told(document))


def _upgrade(asked: argparse.Namespace) -> None:
    from kairosbuild.node.upgrade import upgrade

    here, declared = machine.here(), settings.load()
    offer, repository = _offered(
        asked.reference or declared.upgrade or _reference_of(here), declared, plain=asked.plain_http
    )
    done = upgrade(here, offer, repository, tries=assess.TRIES, again=asked.again, say=_say)
    new = "is entered" if done.new else "was there"
    _say(
        f"{done.entry.kernel.title} {new} as {done.entry.label}; {done.fetched} of {done.whole} bytes fetched"
    )
    _restart(asked.reboot)


def _rollback(asked: argparse.Namespace) -> None:
    entry = assess.rollback(machine.here())
    _say(f"{entry.kernel.title} is started next, as {entry.label}")
    _restart(asked.reboot)


def _install(asked: argparse.Namespace) -> None:
    from kairosbuild.node import config, install

    text = ""
    if asked.config:
        text = _text(asked.config)
        config.read(text, asked.config)
    found = install.medium(Path("/proc/cmdline").read_text())
    if found is None:
        hint = "start it from an ISO, or by netboot, made of a node of kind boot"
        raise Problem("this is no live system that installs", reason="not-live", hint=hint)
    install.install(_chosen(asked.device), found, text, tries=assess.TRIES, say=_say)
    _say("installed")
    _restart(asked.reboot)


def _chosen(device: str) -> Path:
    """The disk named, the largest for `auto`, or the one that the person at the terminal picks."""
    from kairosbuild.node import install

    known = list(install.disks())
    if device == "auto" and known:
        return Path(known[0][0])
    if not device and sys.stdin.isatty():
        for name, size in known:
            print(f"{name}  {size >> 30} GiB")
        device = input("Install to which disk? All that is on it is lost: ").strip()
    if device not in [name for name, _ in known]:
        listed = ", ".join(f"{name} ({size >> 30} GiB)" for name, size in known) or "none"
        raise Problem(
            f"{device or 'no disk'} was chosen", reason="no-disk", hint=f"disks to install to: {listed}"
        )
    return Path(device)


def _live(cmdline: str) -> int:
    """On a live medium: install without asking when the configuration says so."""
    from kairosbuild.node import config, install, sources

    told = list(sources.sources())
    wanted = config.merged([config.read(one.text, one.name) for one in told]).get("install", {})
    if not wanted.get("auto") or (found := install.medium(cmdline)) is None:
        return 0
    device = _chosen(wanted.get("device", "auto"))
    install.install(device, found, sources.kept(told), tries=assess.TRIES, say=_say)
    _say(f"installed to {device}")
    if wanted.get("poweroff"):
        machine.run("poweroff")
    _restart(bool(wanted.get("reboot")))
    return 0


def _reset(asked: argparse.Namespace) -> None:
    from kairosbuild.node import places

    wiped = places.reset(asked.keep)
    _say(f"the next start wipes {', '.join(wiped)}")
    _restart(asked.reboot)


def _recovery(asked: argparse.Namespace) -> None:
    from kairosbuild.node import places

    here = machine.here()
    with here.changing():
        entry = assess.report(here).recovery
        if entry is None:
            raise Problem(
                "this machine has no recovery system", reason="no-recovery", hint="its disk was made without"
            )
        places.start_once(entry.label, here.entries.grub)
    _say(f"{entry.kernel.title} is started next, once, as {entry.label}")
    _restart(asked.reboot)


def _repair(asked: argparse.Namespace) -> None:
    from kairosbuild.node.upgrade import repair

    here, declared = machine.here(), settings.load()
    offer, repository = _offered(
        asked.reference or _reference_of(here) or declared.upgrade, declared, plain=asked.plain_http
    )
    repaired = repair(here, offer, repository, say=_say)
    _say(f"{len(repaired)} layers fetched anew" if repaired else "every layer is intact")


def _config(asked: argparse.Namespace) -> int:
    from kairosbuild.node import config, sources
    from kairosbuild.node.apply import Applier

    if asked.what == "schema":
        print(json.dumps(config.schema(), indent=1))
        return 0
    if asked.what == "validate":
        config.read(_text(asked.file or "/dev/stdin"), asked.file or "stdin")
        _say("it is well")
        return 0
    found = sources.gather()
    if asked.what == "show":
        print(json.dumps(found, indent=1))
        return 0
    applier = Applier()
    applier.early(found)
    for problem in applier.problems:
        _say(problem)
    return 1 if applier.problems else 0


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read()
    except OSError as problem:
        raise Problem(f"{path}: {problem.strerror}", reason="bad-config") from problem


def _late() -> str:
    """What a configuration wants done once the machine is up; never a reason to give an image away."""
    from kairosbuild.node import sources
    from kairosbuild.node.apply import Applier

    if not any(True for _ in sources.sources()):
        return ""
    done = machine.RUN / ("persistent" if os.path.ismount(machine.RUN / "persistent") else ".") / "configured"
    applier = Applier()
    found = sources.gather()
    applier.late(found, first=not done.exists())
    for problem in applier.problems:
        _say(problem)
    extending.bundles(found, _say)
    done.touch()
    return ""


def _offered(reference: str, declared: settings.Settings, *, plain: bool) -> Any:
    """What a registry has under this reference, and the repository it is in."""
    from kairosbuild.node import reach
    from kairosbuild.node.offer import find

    named, repository, verify = reach.opened(reference, declared, plain=plain)
    return find(named, repository, machine.oci_platform(), verify), repository


def _start(asked: argparse.Namespace) -> int:
    from kairosbuild.node import grow, health, install, watchdog

    if watchdog.stop_unfed():
        _say("nobody feeds this machine's watchdog; it is stopped")
    cmdline = Path("/proc/cmdline").read_text()
    if install.live(cmdline):
        return _live(cmdline)
    if gained := grow.grow():
        _say(f"the persistent partition has grown by {gained >> 20} MiB")
    here = machine.here()
    for failure in assess.begin(here):
        _say(f"{failure.entry} ({failure.reference or failure.image}) failed: {failure.why}")
    declared = settings.load().health
    complaint = health.wait(replace(declared, units=(), commands=())) or _late() or health.wait(declared)
    if not complaint:
        gone = assess.bless(here)
        _say("healthy" + (f"; {len(gone)} layers of older images removed" if gone else ""))
        return 0
    _say(f"not healthy: {complaint}")
    if assess.complain(here, complaint, up=health.came_up()):
        _restart(True)
    return 1


# -- status --------------------------------------------------------------------------------------


def status(here: Machine, *, verify: bool = False) -> dict[str, Any]:
    """Everything known, as a document."""
    found = assess.report(here)
    roles = {
        "running": found.running,
        "next": found.next,
        "fallback": found.fallback,
        "recovery": found.recovery,
    }
    systems = [one for one in roles.values() if one and not one.kernel.recovery]
    listed = [layer for one in systems for layer in one.kernel.layers]
    damaged = {one.root_hash for one in here.layers.damaged(listed)} if verify else None
    return {
        **{role: _described(found.state, entry, damaged) for role, entry in roles.items()},
        "failed": [
            {
                "image": one.image,
                "entry": one.entry,
                "reference": one.reference,
                "manifest": one.manifest,
                "why": one.why,
            }
            for one in found.state.failures
        ],
        "trying": found.state.trying,
        "free": here.layers.room(),
    }


def _described(remembered: Any, entry: Entry | None, damaged: set[str] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    origin = remembered.origins.get(entry.label)
    layers = [one.root_hash for one in entry.kernel.layers]
    bad = [] if entry.kernel.recovery else [one for one in layers if one in (damaged or ())]
    return {
        "entry": entry.label,
        "title": entry.kernel.title,
        "image": entry.kernel.image,
        "manifest": origin.manifest if origin else "",
        "reference": origin.reference if origin else "",
        "blessed": bool(origin and origin.blessed),
        "tries": entry.left,
        "layers": layers,
        **({"damaged": bad} if damaged is not None else {}),
    }


def told(document: dict[str, Any]) -> str:
    """The same for people: a line each."""
    lines = []
    for role in ("running", "next", "fallback", "recovery"):
        if one := document[role]:
            trial = "last resort" if one == document["recovery"] else "on trial"
            state = "kept" if one["blessed"] else trial
            where = one["reference"] or one["image"] or "from the disk's maker"
            lines.append(f"{role:9} {one['entry']:12} {one['title']}, {where}, {state}")
            lines += [f"{'':9} layer {name} is damaged" for name in one.get("damaged", ())]
    lines += [
        f"{'failed':9} {one['entry']:12} {one['reference'] or one['image']}: {one['why']}"
        for one in document["failed"]
    ]
    return "\n".join(lines)


def _reference_of(here: Machine) -> str:
    """Where the running image, or else the next one, came from."""
    with here.reading():
        found = assess.report(here)
    for entry in (found.running, found.next):
        if entry and (origin := found.state.origins.get(entry.label)) and origin.reference:
            return origin.reference
    return ""


def _restart(wanted: bool) -> None:
    if wanted:
        machine.run("reboot")


def _say(text: str) -> None:
    print(f"kbuild-node: {text}", flush=True)
