"""`--output NODE=FILE`: a result copied out of the store, holes kept, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kairosbuild.core.atomic import replacing
from kairosbuild.core.digest import CHUNK
from kairosbuild.core.errors import InputError, nearest
from kairosbuild.execute.selection import output_of

if TYPE_CHECKING:
    from kairosbuild.cli.wiring import Parts
    from kairosbuild.execute.engine import Outcome

_MAIN = ("disk", "iso", "image", "file", "layer", "uki", "initrd", "verdict")
"""Which of a node's outputs is meant; another one when it has none of these, always the same."""
_ZEROS = bytes(CHUNK)


def copy_out(parts: Parts, outcome: Outcome, node: str, file: str) -> None:
    """Copy the main output of a node, or with `NODE.OUTPUT` another one, to a file."""
    name, wanted = output_of(node, [each for each in outcome.names() if outcome.has(each)])
    outputs = outcome.outputs(name)
    wanted = wanted or main_output(outputs)
    if wanted not in outputs:
        raise InputError(
            f"{name} has no output {wanted!r}", reason="unknown-output", hint=nearest(wanted, outputs)
        )
    parts.bring([outputs[wanted]])
    copy_sparse(parts.store.cas.path(outputs[wanted].digest), Path(file))


def main_output(outputs: Iterable[str]) -> str:
    """The output that is meant by a node's name. The order says nothing: built and remembered they differ in it."""
    there = sorted(outputs)
    return next((each for each in (*_MAIN, *there) if each in there), "")


def copy_sparse(source: Path, into: Path) -> None:
    """Copy a file, zeros as holes, under a temporary name until it is whole."""
    with source.open("rb") as read, replacing(into) as write:
        while chunk := read.read(CHUNK):
            if chunk == _ZEROS[: len(chunk)]:
                write.seek(len(chunk), os.SEEK_CUR)
            else:
                write.write(chunk)
        write.truncate()
