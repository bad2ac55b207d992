"""Every verb and flag, as one table that drives the parser, the help and the completion scripts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kairosbuild import __version__


@dataclass(frozen=True, slots=True)
class Flag:
    """One argument: its names, its help, and what argparse needs besides."""

    names: tuple[str, ...]
    help: str
    more: Mapping[str, Any] = field(default_factory=dict)


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


RECIPE = flag("recipe", help="the recipe file, e.g. recipes/debian.yaml")
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
JOBS = flag("-j", "--jobs", help="how many nodes at once (default: one a CPU)", type=int, metavar="N")
KEEP_GOING = flag("-k", "--keep-going", help="build what does not depend on a failure", action="store_true")
EVENTS = flag("--events", help="write every event to FILE as JSON lines", metavar="FILE")
TRACE = flag("--trace", help="write a Chrome trace (chrome://tracing, Perfetto) to FILE", metavar="FILE")
PLAIN_HTTP = flag("--plain-http", help="talk HTTP to a registry that is not on loopback", action="store_true")

REFERENCE = flag("reference", help="a registry reference, or oci:DIR:TAG for a layout on disk", metavar="REF")
RECIPE_OR_REF = flag(
    "recipe", help="a recipe file, a registry reference, or oci:DIR:TAG", metavar="RECIPE|REF"
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

VERBS = (
    Verb(
        "run",
        "plan, build and publish a recipe",
        (
            RECIPE,
            NODES,
            *INPUT[1:],
            *BUILDING,
            JSON,
            flag("--push", help="publish to this registry reference instead of the recipe's", metavar="REF"),
            SIGN,
            flag("--no-publish", help="build only", action="store_true"),
            DRY,
            flag(
                "-o",
                "--output",
                help="copy a node's result to FILE",
                action="append",
                default=[],
                metavar="NODE=FILE",
            ),
        ),
        (
            "kbuild run recipes/debian.yaml",
            "kbuild run recipes/debian.yaml disk -o disk=debian.qcow2",
            "kbuild run recipes/debian.yaml --push localhost:5000/os/debian",
            "kbuild run recipes/debian.yaml --cache-from localhost:5000/os/cache --cache-to localhost:5000/os/cache",
        ),
    ),
    Verb(
        "plan",
        "what would run, what is a hit, what waits, and why",
        (RECIPE, NODES, *INPUT[1:], JSON),
        ("kbuild plan recipes/debian.yaml", "kbuild plan recipes/debian.yaml --json"),
    ),
    Verb(
        "why",
        "why a node would be rebuilt: which field, file or input differs from its last result",
        (RECIPE, NODE, *INPUT[1:], JSON),
        ("kbuild why recipes/debian.yaml disk",),
    ),
    Verb(
        "graph",
        "draw the graph",
        (
            RECIPE,
            SET,
            flag(
                "--format",
                help="dot, mermaid or svg (default: dot)",
                default="dot",
                choices=("dot", "mermaid", "svg"),
            ),
        ),
        ("kbuild graph recipes/debian.yaml --format svg > debian.svg",),
    ),
    Verb(
        "query",
        "ask the graph: deps NODE, rdeps NODE, somepath FROM TO",
        (
            RECIPE,
            flag("question", help="deps, rdeps or somepath", choices=("deps", "rdeps", "somepath")),
            flag("nodes", help="the nodes asked about", nargs="+", metavar="NODE"),
            SET,
            JSON,
        ),
        (
            "kbuild query recipes/debian.yaml rdeps kernel",
            "kbuild query recipes/debian.yaml somepath disk base",
        ),
    ),
    Verb(
        "lock",
        "resolve every mutable input into the lock file beside the recipe",
        (
            RECIPE,
            SET,
            CACHE,
            MIRROR,
            *SHARING,
            PROGRESS,
            JSON,
            flag(
                "--update",
                help="resolve these nodes anew (all of them without a name)",
                nargs="*",
                metavar="NODE",
            ),
            flag(
                "--diff",
                help="only tell what resolving anew (--update, or all) would change",
                action="store_true",
            ),
        ),
        (
            "kbuild lock recipes/debian.yaml",
            "kbuild lock recipes/debian.yaml --update kernel",
            "kbuild lock recipes/debian.yaml --diff",
        ),
    ),
    Verb(
        "push",
        "publish what a recipe has built to a registry",
        (
            RECIPE,
            flag("reference", help="where to, e.g. localhost:5000/os/debian", metavar="REF"),
            DRY,
            *INPUT[1:],
            *BUILDING,
            JSON,
            SIGN,
        ),
        ("kbuild push recipes/debian.yaml localhost:5000/os/debian",),
    ),
    Verb(
        "pull",
        "get a published artifact back, verified",
        (
            REFERENCE,
            flag(
                "-o", "--output", help="the folder to put it in (default: here)", default=".", metavar="DIR"
            ),
            flag(
                "--seed",
                help="an older version; what it shares is not fetched (the file to be replaced is one by itself)",
                action="append",
                default=[],
                metavar="FILE",
            ),
            PLAIN_HTTP,
            PROGRESS,
            JSON,
        ),
        ("kbuild pull oci:dist/debian:latest-disk -o /tmp",),
    ),
    Verb(
        "sign",
        "sign what a reference names, so that cosign and kbuild can verify it",
        (REFERENCE, KEY, PLAIN_HTTP, JSON),
        (
            "kbuild sign localhost:5000/os/debian:latest --key cosign.key",
            "kbuild sign localhost:5000/os/debian:latest --key 'pkcs11:token=ci;object=release'",
        ),
    ),
    Verb(
        "verify-signature",
        "check that a key signed what a reference names; signatures by cosign count too",
        (REFERENCE, KEY, PLAIN_HTTP, JSON),
        ("kbuild verify-signature localhost:5000/os/debian:latest --key cosign.pub",),
    ),
    Verb(
        "attest",
        "say something about what a reference names, signed (an in-toto attestation)",
        (
            REFERENCE,
            KEY,
            flag(
                "--type",
                help="the predicate's type: a URI, or slsaprovenance1, spdxjson, cyclonedx, test-result",
                required=True,
            ),
            flag("--predicate", help="the predicate, a JSON file", required=True, metavar="FILE"),
            PLAIN_HTTP,
            JSON,
        ),
        (
            "kbuild attest localhost:5000/os/debian:latest --key cosign.key \\\n"
            "      --type https://example.com/review/v1 --predicate review.json",
        ),
    ),
    Verb(
        "diff",
        "what differs between two recipes, published references or files (exit code 1 when something does)",
        (
            flag("a", help="a recipe, a reference, or a file (a UKI, a tar)", metavar="A"),
            flag("b", help="the same, newer", metavar="B"),
            flag("--node", help="of a recipe only these nodes", action="append", default=[], metavar="NODE"),
            *INPUT[1:],
            JOBS,
            PROGRESS,
            JSON,
        ),
        (
            "kbuild diff oci:dist/debian:latest recipes/debian.yaml",
            "kbuild diff localhost:5000/os/debian:v1 localhost:5000/os/debian:v2 --json",
        ),
    ),
    Verb(
        "sbom",
        "the inventory (SBOM) of what a recipe builds, or of what is published",
        (
            RECIPE_OR_REF,
            NODES,
            *INPUT[1:],
            JOBS,
            PROGRESS,
            flag(
                "--format",
                help="spdx (2.3) or cyclonedx (1.6)",
                default="spdx",
                choices=("spdx", "cyclonedx"),
            ),
            JSON,
        ),
        ("kbuild sbom recipes/debian.yaml", "kbuild sbom localhost:5000/os/debian:latest --format cyclonedx"),
    ),
    Verb(
        "provenance",
        "what a node was made from (SLSA provenance), of a recipe or as it was published",
        (RECIPE_OR_REF, NODES, *INPUT[1:], JOBS, PROGRESS, JSON),
        ("kbuild provenance recipes/debian.yaml disk", "kbuild provenance localhost:5000/os/debian:latest"),
    ),
    Verb(
        "boot",
        "boot a disk of the recipe in an emulator, its console on this terminal",
        (
            RECIPE,
            flag("node", help="the disk (default: the recipe's only one)", nargs="?", metavar="NODE"),
            *INPUT[1:],
            *BUILDING,
            flag("--memory", help="MiB of memory (default: 1024)", type=int, default=1024),
            flag(
                "--accel",
                help="tcg emulates and always works; kvm is quick (default: tcg)",
                default="tcg",
                choices=("tcg", "kvm"),
            ),
        ),
        ("kbuild boot recipes/debian.yaml",),
    ),
    Verb(
        "verify",
        "build twice in ways that should not matter, and name the first difference",
        (RECIPE, NODES, *INPUT[1:], JOBS, PROGRESS, JSON),
        ("kbuild verify recipes/debian.yaml",),
    ),
    Verb(
        "log",
        "what a node printed when it was built, or when it failed",
        (RECIPE, NODE, *INPUT[1:]),
        ("kbuild log recipes/debian.yaml boots",),
    ),
    Verb(
        "check",
        "validate a recipe and say every problem at once",
        (RECIPE, SET, JSON),
        ("kbuild check recipes/debian.yaml",),
    ),
    Verb(
        "show",
        "the recipe as it is understood, and where each value came from",
        (RECIPE, NODES, SET, JSON),
        (
            "kbuild show recipes/debian.yaml",
            "kbuild show recipes/debian.yaml base --set suite=sid",
        ),
    ),
    Verb(
        "schema",
        "print the JSON Schema for editors, or the field reference",
        (
            flag(
                "--of",
                help="recipe, workspace or reference (default: recipe)",
                default="recipe",
                choices=("recipe", "workspace", "reference"),
            ),
        ),
        ("kbuild schema > schema/recipe.schema.json",),
    ),
    Verb(
        "init",
        "start a workspace: BUILD.yaml, a recipe and an overlay",
        (flag("folder", help="where (default: here)", nargs="?", default="."),),
        ("kbuild init my-os",),
    ),
    Verb(
        "keys",
        "make the keys of a trusted boot: PK, KEK, db, and one for a TPM's policies",
        (
            flag("question", help="what to do", choices=("new",)),
            flag("folder", help="where they go; it must have no keys yet", metavar="FOLDER"),
            flag("--name", help="who the certificates say they are", default="kairosbuild", metavar="NAME"),
            JSON,
        ),
        ("kbuild keys new keys", 'kbuild keys new ~/keys/production --name "Example Ltd"'),
    ),
    Verb(
        "cache",
        "look at the store, tidy it, prove it",
        (
            flag("question", help="stat, gc or verify", choices=("stat", "gc", "verify")),
            CACHE,
            JSON,
            flag("--keep", help="gc: keep at most this much, e.g. 20G", metavar="SIZE"),
            flag("--now", help="gc: also what is younger than a day", action="store_true"),
            flag("--older", help="gc: drop what was not used for this long, e.g. 14d", metavar="AGE"),
        ),
        ("kbuild cache stat", "kbuild cache gc --keep 20G", "kbuild cache verify"),
    ),
    Verb(
        "registry",
        "prune a repository, or make an index of images for several platforms",
        (
            flag("question", help="prune or index", choices=("prune", "index")),
            flag("reference", help="the repository, or the tag of the index", metavar="REF"),
            flag("sources", help="index: the images", nargs="*", metavar="SOURCE"),
            flag("--keep-last", help="prune: keep so many of the newest tags", type=int, metavar="N"),
            flag("--newer-than", help="prune: keep what is younger, e.g. 30d", metavar="AGE"),
            flag("--keep", help="prune: keep tags like this", action="append", default=[], metavar="PATTERN"),
            flag(
                "--only",
                help="prune: only among tags like this",
                action="append",
                default=[],
                metavar="PATTERN",
            ),
            flag("--dry-run", help="say what would be done, and do nothing", action="store_true"),
            PLAIN_HTTP,
            JSON,
        ),
        (
            "kbuild registry prune localhost:5000/os/debian --keep-last 5 --keep 'v*' --dry-run",
            "kbuild registry prune localhost:5000/os/cache --only 'cache-*' --newer-than 30d",
            "kbuild registry index localhost:5000/os/debian:1.0 localhost:5000/os/debian:1.0-amd64 "
            "localhost:5000/os/debian:1.0-arm64",
        ),
    ),
    Verb(
        "completion",
        "print a completion script for a shell",
        (flag("shell", help="bash, zsh or fish", choices=("bash", "zsh", "fish")),),
        ('eval "$(kbuild completion bash)"',),
    ),
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. argparse exits with 2 on bad usage, 0 after --help."""
    named = next((word for word in argv if not word.startswith("-")), "")
    made = parser(only=named)
    if not argv:
        made.print_help(sys.stderr)
        raise SystemExit(2)
    _refuse_unknown(named)
    arguments, rest = made.parse_known_args(argv)
    if hasattr(arguments, "nodes") and not any(word.startswith("-") for word in rest):
        arguments.nodes = [*(arguments.nodes or ()), *rest]  # argparse takes none behind a flag
    elif rest:
        made.error("unrecognized arguments: " + " ".join(rest))
    return arguments


def _refuse_unknown(verb: str) -> None:
    """Argparse would list every verb; the nearest is what was meant."""
    from kairosbuild.core.errors import InputError, nearest

    known = [one.name for one in VERBS]
    if verb and verb not in known:
        raise InputError(f"there is no verb {verb!r}", reason="bad-usage", hint=nearest(verb, known))


def parser(only: str = "") -> argparse.ArgumentParser:
    """The parser; with `only`, the flags of the other verbs are left out, which is quicker."""
    top = argparse.ArgumentParser(
        prog="kbuild",
        formatter_class=_Help,
        description="Build bootable operating systems from a recipe, rebuilding only what must be.",
        epilog="start with:  kbuild run recipes/debian.yaml\nhelp on a verb:  kbuild run --help",
    )
    top.add_argument("--version", action="version", version=f"kbuild {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    known = {verb.name for verb in VERBS}
    for verb in VERBS:
        if only in known and verb.name != only:
            continue
        examples = "examples:\n" + "\n".join(f"  {line}" for line in verb.examples)
        sub = verbs.add_parser(
            verb.name,
            help=verb.help,
            description=_sentence(verb.help),
            epilog=examples,
            formatter_class=_Help,
        )
        for one in verb.flags:
            sub.add_argument(*one.names, help=one.help, **one.more)
    return top


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; colour is ours to decide, not argparse's of a later Python."""

    def __init__(self, prog: str, **more: Any) -> None:
        if sys.version_info >= (3, 14):
            more["color"] = False
        width = min(100, int(os.environ.get("COLUMNS", "100")))
        super().__init__(prog, **{**more, "max_help_position": 28, "width": width})


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
