"""What a row of the table of verbs is, and the flags that several verbs have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument: its names, its help, and what argparse needs besides."""

    names: tuple[str, ...]
    help: str
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def positional(self) -> bool:
        """Whether its place says what it is, and not its name."""
        return not self.names[0].startswith("-")


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: what it does in a line, its arguments, and examples that can be pasted."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    examples: tuple[str, ...]


def flag(*names: str, help: str, **more: Any) -> Flag:
    """A row of the table."""
    return Flag(names, help, more)


def above_zero(text: str) -> int:
    """A number of things that cannot be none."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


RECIPE = flag(
    "recipe", help="the recipe file (default: the only one of the workspace)", nargs="?", metavar="RECIPE"
)
NODES = flag("nodes", help="only these nodes and what they need", nargs="*", metavar="NODE")
NODE = flag("node", help="a node of the recipe", metavar="NODE")
SET = flag("--set", help="give a declared variable another value", action="append", default=[], metavar="K=V")
JSON = flag("--json", help="the result as one line of JSON on stdout", action="store_true")
CACHE = flag("--cache-dir", help="the store's folder (default: cache/ of the workspace)", metavar="DIR")
LOCKED = flag("--locked", help="a stale or missing lock file is an error", action="store_true")
OFFLINE = flag("--offline", help="reach no network: lock and caches alone", action="store_true")
MIRROR = flag("--mirror", help="where a named mirror is", action="append", default=[], metavar="NAME=URL")
PROGRESS = flag(
    "--progress",
    help="how to show progress (default: auto)",
    default="auto",
    choices=("auto", "plain", "json", "none"),
)
JOBS = flag("-j", "--jobs", help="how many nodes at once (default: one a CPU)", type=above_zero, metavar="N")
KEEP_GOING = flag("-k", "--keep-going", help="build what does not depend on a failure", action="store_true")
EVENTS = flag("--events", help="write every event to FILE as JSON lines", metavar="FILE")
TRACE = flag("--trace", help="write a Chrome trace (chrome://tracing, Perfetto) to FILE", metavar="FILE")
PLAIN_HTTP = flag("--plain-http", help="talk HTTP to a registry that is not on loopback", action="store_true")

REFERENCE = flag("reference", help="a registry reference, or oci:DIR:TAG for a layout on disk", metavar="REF")
RECIPE_OR_REF = flag(
    "recipe",
    help="a recipe file (default: the only one of the workspace), a registry reference, or oci:DIR:TAG",
    nargs="?",
    metavar="RECIPE|REF",
)
KEY = flag(
    "--key",
    help="a key: a file (PEM, cosign's), env://NAME, or pkcs11:token=…;object=…",
    required=True,
    metavar="KEY",
)

DRY = flag("--dry-run", help="say what would be published, and send nothing", action="store_true")
CACHE_FROM = flag(
    "--cache-from",
    help="look results up in this repository of a registry (may be repeated)",
    action="append", default=[], metavar="REF",
)  # fmt: skip
CACHE_TO = flag("--cache-to", help="put results into this repository of a registry", metavar="REF")
CACHE_SIGN = flag(
    "--cache-sign", help="sign what is put there: a key file, env://NAME or pkcs11:…", metavar="KEY"
)
CACHE_TRUST = flag(
    "--cache-trust",
    help="use only shared results that this public key signed (may be repeated)",
    action="append", default=[], metavar="KEY",
)  # fmt: skip

SIGN = flag("--sign", help="sign what is published with this key instead of the recipe's", metavar="KEY")

SHARING = (CACHE_FROM, CACHE_TO, CACHE_SIGN, CACHE_TRUST, PLAIN_HTTP)
INPUT = (RECIPE, SET, CACHE, LOCKED, OFFLINE, MIRROR, *SHARING)
BUILDING = (JOBS, KEEP_GOING, PROGRESS, EVENTS, TRACE)
