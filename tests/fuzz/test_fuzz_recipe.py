"""The fuzz target itself works, and a short run of it is part of the suite."""

import random

import fuzz_recipe
import pytest


def test_a_short_run():
    assert fuzz_recipe.run(2.0, seed=1) > 100


@pytest.mark.parametrize("at", range(len(fuzz_recipe.CORPUS)))
def test_the_corpus_holds(at):
    fuzz_recipe.TestOneInput(fuzz_recipe.CORPUS[at])


def test_the_corpus_reaches_the_inside():
    """The first of the corpus is a right recipe, so that its mutations are nearly right ones."""
    assert (
        len(
            fuzz_recipe.parse(
                fuzz_recipe.CORPUS[0], "f", fuzz_recipe.KINDS, workspace=fuzz_recipe.WORKSPACE
            ).nodes
        )
        == 4
    )


def test_mutations_repeat_with_their_seed():
    one, other = random.Random(7), random.Random(7)
    assert [fuzz_recipe.mutated(one, fuzz_recipe.CORPUS) for _ in range(20)] == [
        fuzz_recipe.mutated(other, fuzz_recipe.CORPUS) for _ in range(20)
    ]
