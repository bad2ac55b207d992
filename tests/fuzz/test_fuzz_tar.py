"""The fuzz target itself works, and a short run of it is part of the suite."""

from __future__ import annotations

import io
import random

import fuzz_tar
import pytest

from kairosbuild.oci.reader import normalise


def test_a_short_run():
    assert fuzz_tar.run(2.0, seed=1) > 50


@pytest.mark.parametrize("at", range(len(fuzz_tar.corpus())))
def test_the_corpus_holds_and_is_accepted(at):
    data = fuzz_tar.corpus()[at]
    fuzz_tar.TestOneInput(data)
    assert normalise(io.BytesIO(data), io.BytesIO(), 0)


def test_mutations_repeat_with_their_seed_and_some_are_accepted():
    one, other = random.Random(7), random.Random(7)
    first = [fuzz_tar.mutated(one, fuzz_tar.corpus()) for _ in range(60)]
    assert first == [fuzz_tar.mutated(other, fuzz_tar.corpus()) for _ in range(60)]
    accepted = 0
    for data in first:
        try:
            normalise(io.BytesIO(data), io.BytesIO(), 0)
            accepted += 1
        except fuzz_tar.KbuildError:
            pass
    assert 3 < accepted < 57
