"""The command: parse, dispatch to a verb, and turn what happened into an exit code.

0 done · 1 a node failed · 2 the input is wrong · 3 the environment is · 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from kairosbuild.core.errors import KbuildError, Problems

INTERRUPTED = 130


def run() -> None:
    """The `kbuild` console script. Leaves without teardown: everything durable is already on disk."""
    gc.disable()  # a run makes few cycles; collecting among 10,000 nodes costs more than it frees
    code = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code and raises nothing but what a bug would."""
    from kairosbuild.cli import given
    from kairosbuild.cli.parsing import parse

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments = parse(argv)
        if getattr(arguments, "recipe", "") is None:
            arguments.recipe = given.only_recipe()
        verb = import_module(f"kairosbuild.cli.verbs.{arguments.verb.replace('-', '_')}")
        return int(verb.main(arguments))
    except KbuildError as problem:
        report(problem, json="--json" in argv)
        return problem.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as problem:
        report(_host(problem), json="--json" in argv)
        return 3
    except SystemExit as leaving:  # argparse: 0 for --help, 2 for bad usage
        return leaving.code if isinstance(leaving.code, int) else 2


def report(problem: KbuildError, *, json: bool) -> None:
    """Tell a failure: for people on stderr, with --json for programs on stdout too."""
    from kairosbuild.cli.style import err

    problems = problem.problems if isinstance(problem, Problems) else (problem,)
    for one in problems:
        place = f"{one.origin}: " if one.origin else ""
        print(f"{err.bold(place)}{err.red('error:')} {one.message}", file=sys.stderr)
        if one.hint:
            print(f"  {err.cyan('hint:')} {one.hint}", file=sys.stderr)
    if json:
        from kairosbuild.core.canonical import dumps

        print(dumps({"errors": [_as_json(one) for one in problems]}).decode())


def _as_json(problem: KbuildError) -> dict[str, object]:
    origin = problem.origin
    place = {"file": origin.file, "line": origin.line, "column": origin.column} if origin else None
    return {"reason": problem.reason, "message": problem.message, "hint": problem.hint, "origin": place}


def _host(problem: OSError) -> KbuildError:
    from kairosbuild.core.errors import HostError

    name = f" ({problem.filename})" if problem.filename else ""
    return HostError(f"{problem.strerror or problem}{name}", reason="os-error")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
