"""The layer of a 60,000-file tree: ours against GNU tar.

Both read the same folder (in the page cache) and leave a sorted tar on disk and its sha256. Ours also keeps
extended attributes and writes the index; GNU tar gets the quicker of two ways to be hashed (by openssl where
there is one), through a pipe while it writes or from the file afterwards. Normalising GNU tar's archive must give our bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Result, median_seconds
from kairosbuild.oci.index import Index
from kairosbuild.oci.reader import normalise
from kairosbuild.oci.tree import write_tree

FILES = 60_000
MEAN = 10_000  # bytes in a file
HASH = "openssl dgst -sha256" if shutil.which("openssl") else "sha256sum"  # the former is the quicker
TAR = "tar --sort=name --numeric-owner --mtime=@0 --format=ustar -C {tree} -cf"
PIPE = f"{TAR} - . | tee {{tar}} | {HASH}"
AFTER = f"{TAR} {{tar}} . && {HASH} {{tar}}"


class Hashing:
    """A file that is hashed while it is written, as the store's writer is."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._sha = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write all of it."""
        self._sha.update(data)
        return self._file.write(data)

    def close(self) -> str:
        """The digest."""
        self._file.close()
        return self._sha.hexdigest()


def make_tree(root: Path) -> None:
    """A tree shaped like an installed system: most files small, a few large, in 4,000 folders."""
    dice = random.Random(60)
    data = dice.randbytes(4 << 20)
    folders = [root / f"d{n % 20:02}" / f"e{n // 20 % 20:02}" / f"folder-{n:04}" for n in range(4_000)]
    for folder in folders:
        folder.mkdir(parents=True)
    for number in range(FILES):
        size = min(int(dice.lognormvariate(0, 1.6) * MEAN / 3.6), 2 << 20)
        content = data[number : number + size]
        (folders[number * 7919 % len(folders)] / f"file-{number:05}.dat").write_bytes(content)


def ours(tree: Path, tar: Path) -> tuple[str, bytes]:
    """Write the layer; return its digest and index."""
    out = Hashing(tar)
    index = write_tree(tree, out, 0)  # type: ignore[arg-type]  # all it needs is `write`
    return out.close(), index


def measure() -> Result:
    """Make the tree, measure, compare the two archives."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("KBUILD_BENCH_DIR")) as name:
        folder = Path(name)
        tree, mine, theirs = folder / "tree", folder / "ours.tar", folder / "theirs.tar"
        tree.mkdir()
        make_tree(tree)
        os.sync()
        digest, index = ours(tree, mine)
        _shell(AFTER, tree, theirs)
        seconds, peers = _taking_turns(tree, mine, theirs)
        assert len(Index.loads(index)) > FILES
        _compare(theirs, mine, digest)
        way = min(peers, key=lambda way: peers[way])
        note = f"{mine.stat().st_size / 1e6:.0f} MB; tar hashed {'through a pipe' if way == PIPE else 'afterwards'}"
    return Result("layer-60k", "s", seconds, peers[way], "GNU tar", 1.0, note)


def _taking_turns(tree: Path, mine: Path, theirs: Path) -> tuple[float, dict[str, float]]:
    """Medians of five rounds; in each round everybody once, so that a busy machine is busy for all."""
    works: dict[str, Callable[[], object]] = {"ours": partial(ours, tree, mine)}
    works |= {way: partial(_shell, way, tree, theirs) for way in (PIPE, AFTER)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(5):
        for name, work in works.items():
            times[name].append(median_seconds(work, runs=1))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return medians.pop("ours"), medians


def _shell(command: str, tree: Path, tar: Path) -> None:
    subprocess.run(["sh", "-c", command.format(tree=tree, tar=tar)], check=True, stdout=subprocess.DEVNULL)


def _compare(theirs: Path, mine: Path, digest: str) -> None:
    again = mine.with_suffix(".again")
    out = Hashing(again)
    with theirs.open("rb") as stream:
        normalise(stream, out, 0, scratch=mine.parent)  # type: ignore[arg-type]
    assert out.close() == digest, "the two archives do not hold the same"


BENCHMARK = Benchmark("layer-60k", "layer and index of a 60,000-file tree, against GNU tar", measure)
