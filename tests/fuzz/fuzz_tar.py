"""Fuzz target: any bytes are a layer or a KbuildError, quickly, and nothing is written outside.

What is accepted must be canonical after one pass (a second changes nothing), hold what the standard
library's reader finds in it, and unpack and scan as itself. `python tests/fuzz/fuzz_tar.py SECONDS [SEED]`
mutates a small corpus in plain Python, checksums mended so that changes get past them; with atheris
installed, `python tests/fuzz/fuzz_tar.py --atheris [libFuzzer arguments]` is guided by coverage.
"""

from __future__ import annotations

import gzip
import io
import random
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent)]

from kairosbuild.core.errors import KbuildError  # noqa: E402
from kairosbuild.oci.entry import Entry  # noqa: E402
from kairosbuild.oci.extract import extract  # noqa: E402
from kairosbuild.oci.index import Index  # noqa: E402
from kairosbuild.oci.layer import write_layer  # noqa: E402
from kairosbuild.oci.parse import Limits  # noqa: E402
from kairosbuild.oci.reader import normalise  # noqa: E402

SLOW = 5.0  # seconds of processor time for one input
LARGEST = 20_000
LIMITS = Limits(members=1000, member=1 << 20, total=4 << 20, metadata=1 << 16)
TOKENS = [
    b"..",
    b"../",
    b"/",
    b"./",
    b"//",
    b"\0",
    b"\xff",
    b".wh.",
    b".wh..wh..opq",
    b"ustar\0",
    b"ustar  \0",
    b"\x80" + bytes(11),
    b"\xff" * 12,
    b"77777777777\0",
    b"1" * 12,
    b"12 path=../x\n",
    b"16 linkpath=/etc\n",
    b"20 size=99999999999\n",
    b"26 SCHILY.xattr.user.a=b\n",
    b"GNU.sparse.major=1",
    *(letter.encode() for letter in "01234567xgLKSZ"),
]


def corpus() -> list[bytes]:
    """Archives of several writers."""
    layer = io.BytesIO()
    write_layer(
        [
            (Entry("a", "dir", 0o755), None),
            (Entry("a/.wh..wh..opq", "file"), b""),
            (Entry("a/f", "file", xattrs=(("user.x", b"y"),)), b"content"),
            (Entry("a/h", "hardlink", target="a/f"), None),
            (Entry("a/l", "symlink", 0o777, target="../f"), None),
            (Entry("b/.wh.gone", "file"), b""),
            (Entry("dev/null", "char", 0o666, major=1, minor=3), None),
            (Entry("pipe", "fifo"), None),
        ],
        layer,
        0,
    )
    made = [layer.getvalue(), gzip.compress(layer.getvalue(), mtime=0)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, kind, link in (
                ("./", b"5", ""),
                ("./" + "n" * 80 + "/" + "m" * 60, b"0", ""),
                ("x", b"2", "t" * 90),
                ("y", b"1", "x"),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, link
                tar.addfile(info)
        made.append(out.getvalue())
    return made


def TestOneInput(data: bytes) -> None:
    """One input, read, normalised and unpacked. Raises what it must not."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "outside").mkdir()
        try:
            _unpacked(data, folder)
        except KbuildError as error:
            assert error.reason and str(error)
        try:
            _normalised(data, folder)
        except KbuildError as error:
            assert error.reason and str(error)
        assert {path.name for path in folder.iterdir()} <= {"outside", "raw", "raw.tar", "one", "one.tar"}
        assert not list((folder / "outside").iterdir())
    took = time.process_time() - start
    assert took < SLOW, f"{took:.1f} s for {len(data)} bytes"


def _unpacked(data: bytes, folder: Path) -> None:
    """As it comes, over a link that leads out."""
    (folder / "raw.tar").write_bytes(data)
    (folder / "raw").mkdir()
    (folder / "raw" / "a").symlink_to(folder / "outside")
    extract(folder / "raw.tar", folder / "raw", owners="dropped", overlay=False)


def _normalised(data: bytes, folder: Path) -> None:
    one, two = io.BytesIO(), io.BytesIO()
    index = normalise(io.BytesIO(data), one, 0, limits=LIMITS)
    assert normalise(io.BytesIO(one.getvalue()), two, 0) == index
    assert two.getvalue() == one.getvalue()
    with tarfile.open(fileobj=io.BytesIO(one.getvalue()), errors="surrogateescape") as tar:
        assert tar.getnames() == list(Index.loads(index).paths())
    (folder / "one.tar").write_bytes(one.getvalue())
    extract(folder / "one.tar", folder / "one", owners="dropped", overlay=False)


def mended(data: bytes) -> bytes:
    """The same with every block that looks like a header given its right checksum."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    """One of the corpus with a few changes, most of them inside headers and without moving what follows."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(data))
        change = chance.randrange(6)
        token = chance.choice(TOKENS)
        if change <= 2:
            field = at // 512 * 512 + chance.choice((0, 0, 100, 108, 124, 136, 156, 157, 257, 329, 345))
            data[field : field + len(token)] = token
        elif change == 3 and data:
            data[min(at, len(data) - 1)] = chance.randrange(256)
        elif change == 4:
            first, last = sorted(chance.randint(0, len(data) // 512) * 512 for _ in range(2))
            data[at // 512 * 512 : at // 512 * 512] = data[first:last]
        else:
            del data[at : at + chance.choice((1, 512, 1024))]
    result = bytes(data[:LARGEST])
    return mended(result) if chance.random() < 0.9 else result


def run(seconds: float, seed: int) -> int:
    """Fuzz for so long; the number of inputs tried."""
    chance, seeds, tried, end = random.Random(seed), corpus(), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(chance, seeds)
        try:
            TestOneInput(data)
        except BaseException:
            print(f"seed {seed}, input {tried}: {data!r}", file=sys.stderr)
            raise
        tried += 1
        if tried % 50 == 0 and len(seeds) < 500:
            seeds.append(data)
    return tried


def main(arguments: list[str]) -> None:
    """The command line."""
    if arguments[:1] == ["--atheris"]:
        import atheris

        atheris.Setup([sys.argv[0], *arguments[1:]], TestOneInput)
        atheris.Fuzz()
        return
    seconds = float(arguments[0]) if arguments else 60.0
    seed = int(arguments[1]) if len(arguments) > 1 else random.randrange(1 << 32)
    print(f"{run(seconds, seed)} inputs, seed {seed}")


if __name__ == "__main__":
    main(sys.argv[1:])
