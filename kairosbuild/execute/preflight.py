"""What would fail late and can be told now: kinds look at what lies beside the recipe before anything runs.

A kind with a method `preflight(name, spec, root)` yields the problems it sees in the workspace at `root`; one that says
`every_owner` is refused where there is only one, as for an ordinary user without subordinate ids. A method
`foresee(declaration, declarations, known)` is told what other nodes came to, where that is sure already. Only nodes that
may have to be built are asked, so that a run with nothing to do loads nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kairosbuild.core.canonical import loads
from kairosbuild.core.digest import Blob
from kairosbuild.core.errors import KbuildError, raise_problems
from kairosbuild.execute import userns
from kairosbuild.execute.nodes import Work
from kairosbuild.recipe.declaration import Declaration


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


def foresee(work: Work, closure: Iterable[int], sure: Collection[int], where: Callable[[Blob], Path]) -> None:
    """Raise what the outputs of nodes that are `sure` tell of the others; `where` blobs are, if they are."""

    def known(name: str, output: str) -> Any:
        node = work.named(name)
        blob = node.result.outputs.get(output) if work.graph.index[name] in sure and node.result else None
        return loads(where(blob).read_bytes()) if blob and where(blob).exists() else None

    problems: list[KbuildError] = []
    for i in sorted(set(closure).difference(sure)):
        node = work.nodes[i]
        if look := getattr(node.kind, "foresee", None):
            for problem in look(node.declaration, _Declarations(work), known):
                problem.origin = problem.origin or node.declaration.origin
                problems.append(problem)
    raise_problems(problems)


class _Declarations(Mapping[str, Declaration]):
    """The declarations of a work by name, read in as they are asked for."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __getitem__(self, name: str) -> Declaration:
        return self._work.named(name).declaration

    def __iter__(self) -> Iterator[str]:
        return iter(self._work.graph.names)

    def __len__(self) -> int:
        return len(self._work.graph.names)
