"""Fuzz target: any bytes are a layer or a KbuildError, and nothing is ever written outside of the folder.

`python tests/fuzz/fuzz_tar.py SECONDS [SEED]` mutates small tars in plain Python; with atheris
installed, `python tests/fuzz/fuzz_tar.py --atheris [libFuzzer arguments]` is guided by coverage.
"""

from __future__ import annotations

import io
import random
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from kairosbuild.core.errors import KbuildError  # noqa: E402
from kairosbuild.oci.extract import extract  # noqa: E402
from kairosbuild.oci.reader import normalise, read_tar  # noqa: E402

LARGEST = 60_000
BLOCK = 512
CANARY = "canary"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()[: LARGEST // 2]


CORPUS = [
    tar(member("a", tarfile.DIRTYPE), member("a/b", data=b"x" * 700), member("a/c", tarfile.LNKTYPE, "a/b")),
    tar(member("l", tarfile.SYMTYPE, "../.."), member("l/canary", data=b"out")),
    tar(
        member("../canary", data=b"out"),
        member("/canary", data=b"out"),
        member("a/../../canary", data=b"out"),
    ),
    tar(member("d", tarfile.CHRTYPE), member(".wh.d"), member("e/.wh..wh..opq")),
    tar(member("n" * 300, data=b"y"), member("m", tarfile.LNKTYPE, "n" * 300), form=tarfile.GNU_FORMAT),
]
TOKENS = [
    b"../",
    b"/",
    b"\0",
    b".wh.",
    b"5",
    b"2",
    b"1",
    b"7777777",
    b"\x80" + b"\xff" * 7,
    b"ustar\x0000",
    b"x",
    b"L",
]


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """One input: read it, normalise it, extract it. Raises what it must not."""
    for work in (_read, _normalise, _extract):
        try:
            work(data)
        except KbuildError as error:
            assert error.reason and str(error)


def _read(data: bytes) -> None:
    for entry, content in read_tar(io.BytesIO(data)):
        assert not entry.path.startswith("/") and ".." not in entry.path.split("/")
        if content is not None:
            content.read()


def _normalise(data: bytes) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    index = normalise(io.BytesIO(data), first, 0)
    assert normalise(io.BytesIO(first.getvalue()), second, 0) == index
    assert first.getvalue() == second.getvalue(), "normalising twice is normalising once"


def _extract(data: bytes) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-tar-"))
    try:
        (folder / "in.tar").write_bytes(data)
        (folder / "deep/root").mkdir(parents=True)
        before = _outside(folder)
        try:
            extract(folder / "in.tar", folder / "deep/root", owners=False, overlay=False)
        finally:
            assert _outside(folder) == before, "something was written outside"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _outside(folder: Path) -> list[tuple[str, int, int]]:
    found = [*folder.iterdir(), *(folder / "deep").iterdir()]
    return sorted((p.name, p.lstat().st_ino, p.lstat().st_size if p.is_file() else 0) for p in found)


def mutated(chance: random.Random, corpus: list[bytes]) -> bytes:
    """One of the corpus with a few changes; often with headers whose checksums are right again."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data)) if data else 0
        match chance.randrange(5):
            case 0:
                token = chance.choice(TOKENS)
                data[at : at + len(token)] = token
            case 1:
                del data[at : at + chance.choice((1, 13, BLOCK))]
            case 2:
                block = at - at % BLOCK
                data[block:block] = data[block : block + BLOCK * chance.choice((1, 2))]
            case 3:
                other = chance.choice(corpus)
                data += other[: chance.randrange(len(other) + 1)]
            case _ if data:
                data[at] = chance.randrange(256)
    return bytes(_summed(data, chance) if chance.random() < 0.8 else data)[:LARGEST]


def _summed(data: bytearray, chance: random.Random) -> bytearray:
    """Give what looks like headers their checksum, so that the mutation behind it is reached."""
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        header = data[at : at + BLOCK]
        if header[257:262] == b"ustar" and chance.random() < 0.95:
            header[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return data


def run(seconds: float, seed: int) -> int:
    """Fuzz for so long; the number of inputs tried. A failing input is written beside the exception."""
    chance, corpus, tried, end = random.Random(seed), list(CORPUS), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance, corpus)
        try:
            TestOneInput(data)
        except BaseException:
            Path(f"fuzz-tar-{seed}-{tried}.bin").write_bytes(data)
            print(f"seed {seed}, input {tried}: written to fuzz-tar-{seed}-{tried}.bin", file=sys.stderr)
            raise
        tried += 1
        if tried % 50 == 0 and len(corpus) < 300:
            corpus.append(data)
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
