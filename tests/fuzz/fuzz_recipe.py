"""Fuzz target: any bytes are a recipe or a KbuildError, quickly, and never anything else.

`python tests/fuzz/fuzz_recipe.py SECONDS [SEED]` mutates a small corpus in plain Python; with
atheris installed, `python tests/fuzz/fuzz_recipe.py --atheris [libFuzzer arguments]` is guided by coverage.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "recipe"), str(HERE.parent.parent)]

from small_kinds import KINDS  # noqa: E402

from kairosbuild.core.errors import KbuildError  # noqa: E402
from kairosbuild.recipe import lockfile  # noqa: E402
from kairosbuild.recipe.load import parse  # noqa: E402
from kairosbuild.recipe.workspace import Cache, Workspace  # noqa: E402

SLOW = 5.0  # seconds of processor time for one input of at most LARGEST bytes
LARGEST = 20_000
WORKSPACE = Workspace(HERE, Cache(HERE / "cache"))

CORPUS = [
    b"version: 1\nname: t\nvars: {a: 6.10, b: '${a}'}\nnodes:\n  base: {kind: base, image: 'x:${b}'}\n"
    b"  n: {kind: layer, on: base, install: [a, b], labels: {x: y}, count: 3, space: 5G, wait: 10m}\n"
    b"  m: {kind: layer, on: n, pieces: [{source: fuzz_recipe.py, mode: 0644}], inputs: {a: base}, doc: x}\n"
    b"  os: {kind: image, layers: [base, n, m]}\npublish: {targets: [os], requires: [n], tags: [a]}\n",
    b"version: 1\nnodes: {a: &x {kind: layer, on: b}, b: *x}\n",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
    b'{"version": 1, "nodes": {"n": {"kind": "layer", "tree": "../x", "from": "$${a}"}}}',
    b"version: 1\nnodes:\n  n:\n    kind: base\n    image: |\n      text\n      more\n    tags:\n    - a\n",
]
TOKENS = [
    b"&a ",
    b"*a",
    b"${a}",
    b"${",
    b"$$",
    b"<<: ",
    b"!!python/object:x ",
    b"? ",
    b": ",
    b"- ",
    b"\n---\n",
    b"\t",
    b"\n  ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"'",
    b'"',
    b"| ",
    b"> ",
    b"#",
    b"~",
    b"..",
    b"/",
    b"\\x00",
    b"\x00",
    b"\xff",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"kind",
    b"layer",
    b"on",
    b"true",
    b"9" * 30,
    b"-1",
    b"%YAML 1.2\n",
    b"%TAG ! x\n",
]


def TestOneInput(data: bytes) -> None:
    """One input, to the recipe reader and to the lock reader. Raises what it must not."""
    start = time.process_time()
    for read in (_recipe, _lock):
        try:
            read(data)
        except KbuildError as error:
            assert error.reason and str(error)
    took = time.process_time() - start
    assert took < SLOW, f"{took:.1f} s for {len(data)} bytes"


def _recipe(data: bytes) -> None:
    parse(data, "fuzz.yaml", KINDS, workspace=WORKSPACE)


def _lock(data: bytes) -> None:
    lock = lockfile.loads(data, "fuzz.lock")
    assert lockfile.loads(lockfile.dumps(lock), "fuzz.lock") == lock


def mutated(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with a few changes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 6)):
        at, to = sorted(chance.randint(0, len(data)) for _ in range(2))
        change = chance.randrange(5)
        if change == 0:
            data[at:at] = chance.choice(TOKENS) * chance.choice((1, 1, 1, 2, 50))
        elif change == 1:
            del data[at : min(to, at + 40)]
        elif change == 2:
            data[at:at] = data[at:to]
        elif change == 3:
            other = chance.choice(corpus)
            data[at:to] = other[chance.randint(0, len(other)) :]
        elif data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
    return bytes(data[:LARGEST])


def run(seconds: float, seed: int) -> int:
    """Fuzz for so long; the number of inputs tried. A failing input is written beside the exception."""
    chance, corpus, tried, end = random.Random(seed), list(CORPUS), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance, corpus)
        try:
            TestOneInput(data)
        except BaseException:
            print(f"seed {seed}, input {tried}: {data!r}", file=sys.stderr)
            raise
        tried += 1
        if tried % 50 == 0 and len(corpus) < 500:
            corpus.append(data[:2000])
    return tried


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments[:1] == ["--atheris"]:
        import atheris

        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *arguments[1:]], TestOneInput)
        atheris.Fuzz()
    seconds = float(arguments[0]) if arguments else 10.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"{run(seconds, seed)} inputs in {seconds:g} s, seed {seed}")


if __name__ == "__main__":
    main(sys.argv[1:])
