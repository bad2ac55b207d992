"""`kbuild-node extension`: what is asked of the machine's extensions, and the bundles of its configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from kairosbuild.node.problem import Problem

Say = Callable[[str], None]


def add_verb(verbs: Any) -> None:
    """The words of the command line."""
    one = verbs.add_parser(
        "extension", help="live overlays of the running system: add REFERENCE, remove NAME, list"
    )
    one.add_argument(
        "what", choices=("list", "add", "remove", "merge"), help="`merge` is what each start does"
    )
    one.add_argument("name", nargs="?", default="", help="a reference to add, or the name of one to remove")
    one.add_argument("--json", action="store_true", help="as a document")
    one.add_argument("--plain-http", action="store_true", help="speak to this registry without TLS")
    one.set_defaults(verb=_verb)


def bundles(config: Mapping[str, Any], say: Say) -> None:
    """Add what a configuration lists and this machine does not have; one that fails is told, and stops no other."""
    from kairosbuild.node import machine
    from kairosbuild.node.extensions import Extensions, Merger

    wanted = [target for one in config.get("bundles", ()) for target in one["targets"]]
    known = Extensions(machine.here(), Merger()) if wanted else None
    for target in wanted:
        assert known is not None, "there is something to add"
        reference = target.partition("://")[2] or target
        if reference not in [one.reference for one in known.all()]:
            try:
                _add(known, reference, say, plain=False)
            except (Problem, OSError) as problem:
                say(f"bundle {target}: {problem}")


def _verb(asked: argparse.Namespace) -> None:
    from kairosbuild.node import machine
    from kairosbuild.node.extensions import Extensions, Merger, shown

    known = Extensions(machine.here(), Merger())
    say = _silent if asked.json else _say
    if asked.what == "list":
        rows = known.listed()
        print(json.dumps(rows, indent=1) if asked.json else shown(rows))
    elif asked.what == "merge":
        known.tidy()
        known.merge(_say)
    elif not asked.name:
        what = "a reference to add" if asked.what == "add" else "the name of the one to remove"
        raise Problem(f"extension {asked.what} wants {what}", reason="bad-reference")
    else:
        removing = asked.what == "remove"
        one = (
            known.remove(asked.name, say)
            if removing
            else _add(known, asked.name, say, plain=asked.plain_http)
        )
        say(f"{one.name} is {'gone' if removing else 'merged'}")
        if asked.json:
            print(json.dumps(asdict(one), indent=1))


def _add(known: Any, reference: str, say: Say, *, plain: bool) -> Any:
    from kairosbuild.node import machine, reach, settings

    named, repository, verify = reach.opened(reference, settings.load(), plain=plain)
    return known.add(named, repository, verify, machine.oci_platform(), say)


def _say(text: str) -> None:
    print(f"kbuild-node: {text}", flush=True)


def _silent(_: str) -> None:
    """Nobody is told: what is asked for is a document."""
