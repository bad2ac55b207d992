"""The command line, parsed by the table of verbs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from kairosbuild import __version__
from kairosbuild.cli.arguments import VERBS
from kairosbuild.cli.flags import Flag, Verb
from kairosbuild.core.errors import InputError, nearest

_HELP = ("-h", "--help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Exits with 0 after --help; raises InputError `bad-usage`."""
    if not argv:
        _top().print_help(sys.stderr)
        raise SystemExit(2)
    word, *rest = argv
    if word == "help":  # as git has it
        word, rest = (rest[0], ["--help"]) if rest else ("--help", [])
    known = {verb.name: verb for verb in VERBS}
    if word in known:
        return _parse(known[word], rest)
    if word in (*_HELP, "--version"):
        return _top().parse_args([word])
    what = "flag" if word.startswith("-") else "verb"
    names = [*_HELP, "--version"] if what == "flag" else list(known)
    raise InputError(f"there is no {what} {word!r}", reason="bad-usage", hint=nearest(word, names))


def _parse(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    """A verb's arguments; nodes may stand behind flags."""
    made = _parser(verb)
    if set(_HELP).isdisjoint(words):
        made.usage = ""  # nobody will read it, and argparse would write it before anything else
    arguments, rest = made.parse_known_intermixed_args(words)
    if rest:
        _refuse(verb, rest[0])
    arguments.verb = verb.name
    return arguments


def _refuse(verb: Verb, word: str) -> NoReturn:
    if not word.startswith("-"):
        raise _bad_usage(verb.name, f"one word too many: {word}")
    name = word.partition("=")[0]
    known = [name for flag in verb.flags for name in flag.names if name.startswith("-")]
    hint = nearest(name, known)
    raise InputError(f"kbuild {verb.name} has no flag {name!r}", reason="bad-usage", hint=hint)


def _bad_usage(verb: str, message: str) -> InputError:
    return InputError(message, reason="bad-usage", hint=f"kbuild {verb} --help")


def _parser(verb: Verb) -> _Parser:
    """The parser of one verb: to make those of all others takes longer than many a run."""
    made = _Parser(
        prog=f"kbuild {verb.name}",
        description=_sentence(verb.help),
        epilog="examples:\n" + "\n".join(f"  {line}" for line in verb.examples),
        formatter_class=partial(argparse.HelpFormatter, width=100),
        allow_abbrev=False,
    )
    for flag in verb.flags:
        made.add_argument(*flag.names, help=flag.help, **_more(flag))
    made.formatter_class = _Help  # each flag added makes one, and ours asks the terminal for its width
    return made


def _more(flag: Flag) -> dict[str, Any]:
    """What argparse needs besides; a choice among words is called by these words."""
    if flag.positional and "choices" in flag.more and "metavar" not in flag.more:
        return {**flag.more, "metavar": "|".join(flag.more["choices"])}
    return dict(flag.more)


class _Parser(argparse.ArgumentParser):
    """One whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        message = message.removeprefix("argument ")
        message = message.replace("the following arguments are required:", "missing:")
        raise _bad_usage(self.prog.removeprefix("kbuild "), message)


def _top() -> argparse.ArgumentParser:
    """What tells about all verbs."""
    made = argparse.ArgumentParser(
        prog="kbuild",
        usage="kbuild VERB …",
        formatter_class=_Help,
        description="Build bootable operating systems from a recipe, rebuilding only what must be.",
        epilog="start with:  kbuild run recipes/debian.yaml\nhelp on a verb:  kbuild help run",
    )
    made.add_argument("--version", action="version", version=f"kbuild {__version__}")
    verbs = made.add_subparsers(title="verbs", dest="verb", metavar="VERB", prog="kbuild")
    for verb in VERBS:
        verbs.add_parser(verb.name, help=verb.help)
    return made


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; colour is ours to decide, not argparse's of a later Python."""

    def __init__(self, prog: str, **more: Any) -> None:
        import shutil

        if sys.version_info >= (3, 14):
            more["color"] = False
        width = min(100, shutil.get_terminal_size((100, 24)).columns)
        super().__init__(prog, **{**more, "max_help_position": 28, "width": width})


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
