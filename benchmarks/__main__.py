"""`python -m benchmarks NAME…`: measure ours and the peer in the same run and print the ratio.

`list` names them, `all` runs them in order, `--json` prints one line each for programs.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from benchmarks.harness import Benchmark, Result

ORDER = (
    "null-10k",
    "change-10k",
    "cold-1k",
    "edit-disk",
    "artifacts-edit",
    "sizes",
    "nochange-disk",
    "cold-disk",
    "package-100",
    "layer-60k",
    "memory-1g",
    "lock-debian",
    "plan-matrix",
    "push-1g",
    "push-200",
    "pull-1g",
    "pull-200",
    "noop-push",
    "firmware-to-login",
    "upgrade-bytes",
    "delta-fetch",
)


def find(name: str) -> Benchmark:
    """The benchmark of this name; its module is called the same, with underscores."""
    found: Benchmark = import_module(f"benchmarks.{name.replace('-', '_')}").BENCHMARK
    return found


def line(result: Result) -> str:
    """A result as a person reads it."""
    verdict = "reached" if result.reached else "MISSED"
    return (
        f"{result.name:14} ours {result.ours:8.2f} {result.unit}   {result.peer_name} {result.peer:8.2f} {result.unit}"
        f"   ratio {result.ratio:.3f} (goal {result.goal:.3f}, {verdict})  {result.note}"
    )


def main(argv: list[str]) -> int:
    """Run the named benchmarks; the exit code tells whether every goal was reached."""
    names = [word for word in argv if not word.startswith("-")]
    if unknown := [name for name in names if name not in (*ORDER, "list", "all")]:
        print(f"no benchmark called {', '.join(unknown)}; known: {', '.join(ORDER)}", file=sys.stderr)
        return 2
    if not names or names == ["list"]:
        for name in ORDER:
            print(f"{name:14} {find(name).doc}")
        return 0
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its byte code
    results = []
    for name in ORDER if names == ["all"] else names:
        results.append(find(name).run())
        print(results[-1].json() if "--json" in argv else line(results[-1]), flush=True)
    return 0 if all(result.reached for result in results) else 1


# what is measured is what pip leaves: compiled once
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.exit(main(sys.argv[1:]))
