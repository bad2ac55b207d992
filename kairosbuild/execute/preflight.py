"""What would fail late and can be told now: kinds look at what lies beside the recipe before anything runs.

A kind with a method `preflight(name, spec, root)` yields the problems it sees in the workspace at `root`; one that says
`every_owner` is refused where there is only one, as for an ordinary user without subordinate ids. Only nodes that may have to be built are asked, so that a run with nothing to do loads nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kairosbuild.core.errors import KbuildError, raise_problems
from kairosbuild.execute import userns
from kairosbuild.execute.nodes import Work


def refuse(work: Work, dirty: Iterable[int], closure: Iterable[int]) -> None:
    """Raise what the kinds of these nodes say of them, each with its node's place."""
    problems: list[KbuildError] = []
    for i in sorted(set(dirty).intersection(closure)):
        node = work.nodes[i]
        if getattr(node.kind, "every_owner", False) and userns.alone():
            problems.append(userns.only_one(node.name, node.declaration.origin))
        if look := getattr(node.kind, "preflight", None):
            for problem in look(node.name, node.spec, Path(work.root)):
                problem.origin = problem.origin or node.declaration.origin
                problems.append(problem)
    raise_problems(problems)
