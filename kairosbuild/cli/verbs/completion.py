"""`kbuild completion`: completion scripts made from the table of verbs."""

from __future__ import annotations

import argparse

from kairosbuild.cli.arguments import VERBS
from kairosbuild.cli.flags import Verb


def main(arguments: argparse.Namespace) -> int:
    """Print the script for the shell that was asked for."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]())
    return 0


def options(verb: Verb) -> list[str]:
    """A verb's option names."""
    return [name for flag in verb.flags for name in flag.names if name.startswith("-")]


def choices(verb: Verb) -> list[str]:
    """The words its positional arguments may be."""
    positional = [flag for flag in verb.flags if not flag.names[0].startswith("-")]
    return [word for flag in positional for word in flag.more.get("choices", ())]


def bash() -> str:
    """A bash script: verbs, then options, choices and files."""
    cases = "\n".join(
        f'    {verb.name}) words="{" ".join(options(verb) + choices(verb))}" ;;' for verb in VERBS
    )
    return f"""_kbuild() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{" ".join(verb.name for verb in VERBS)}"; fi
  COMPREPLY=($(compgen -W "$words" -- "$word") $([ "$COMP_CWORD" -gt 1 ] && compgen -f -- "$word"))
}}
complete -o filenames -F _kbuild kbuild"""


def zsh() -> str:
    """The bash script, by way of zsh's own bridge."""
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash()


def fish() -> str:
    """A fish script, with each verb's help beside it."""
    lines = ["complete -c kbuild -n __fish_use_subcommand -f"]
    for verb in VERBS:
        lines.append(f"complete -c kbuild -n __fish_use_subcommand -a {verb.name} -d {_quote(verb.help)}")
        seen = f"'__fish_seen_subcommand_from {verb.name}'"
        for flag in verb.flags:
            for name in flag.names:
                if name.startswith("-"):
                    kind = "-l " + name[2:] if name.startswith("--") else "-s " + name[1:]
                    lines.append(f"complete -c kbuild -n {seen} {kind} -d {_quote(flag.help)}")
    return "\n".join(lines)


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
