"""The fuzz target of the tar reader itself works, and a short run of it is part of the suite."""

import fuzz_tar
import pytest


def test_a_short_run() -> None:
    assert fuzz_tar.run(3.0, seed=1) > 50


@pytest.mark.parametrize("at", range(len(fuzz_tar.CORPUS)))
def test_the_corpus_holds(at: int) -> None:
    fuzz_tar.TestOneInput(fuzz_tar.CORPUS[at])
