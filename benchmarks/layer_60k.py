"""The layer of a 60,000-file tree: ours against GNU tar.

Both read the same folder (in the page cache) and leave a sorted tar on disk and its sha256. Ours also keeps
extended attributes and writes the index; GNU tar gets the quicker of two ways to be hashed, through a
pipe while it writes or from the file afterwards. Normalising GNU tar's archive must give our bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Result, median_seconds
from kairosbuild.oci.index import Index
from kairosbuild.oci.reader import normalise
from kairosbuild.oci.tree import write_tree

FILES = 60_000
MEAN = 10_000  # bytes in a file
TAR = "tar --sort=name --numeric-owner --mtime=@0 --format=ustar -C {tree} -cf"
PIPE = f"{TAR} - . | tee {{tar}} | sha256sum"
AFTER = f"{TAR} {{tar}} . && sha256sum {{tar}}"


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
        seconds = median_seconds(lambda: ours(tree, mine))
        peers = {
            way: median_seconds(lambda way=way: _shell(way, tree, theirs))
            for way in (PIPE, AFTER)  # type: ignore[misc]
        }
        assert len(Index.loads(index)) > FILES
        _compare(theirs, mine, digest)
        way = min(peers, key=lambda way: peers[way])
        note = f"{mine.stat().st_size / 1e6:.0f} MB; tar hashed {'through a pipe' if way == PIPE else 'afterwards'}"
    return Result("layer-60k", "s", seconds, peers[way], "GNU tar", 1.0, note)


def _shell(command: str, tree: Path, tar: Path) -> None:
    subprocess.run(["sh", "-c", command.format(tree=tree, tar=tar)], check=True, stdout=subprocess.DEVNULL)


def _compare(theirs: Path, mine: Path, digest: str) -> None:
    again = mine.with_suffix(".again")
    out = Hashing(again)
    with theirs.open("rb") as stream:
        normalise(stream, out, 0, scratch=mine.parent)  # type: ignore[arg-type]
    assert out.close() == digest, "the two archives do not hold the same"


BENCHMARK = Benchmark(
    "layer-60k", "canonical layer and index of a 60,000-file tree, against GNU tar", measure
)
