"""The same graph for kbuild and for doit: layers of nodes, each `cat a b | cksum` of two below it.

Node `p` of layer `l` reads nodes `p` and `p+1` of layer `l-1` (around the corner at the end); the
first layer reads two sources of its own. With ten layers one changed source makes
1 + 2 + … + 10 = 55 nodes dirty.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LAYERS = 10
COMMAND = "cat a b | cksum >/out/o"
CONE = sum(range(1, LAYERS + 1))


@dataclass(frozen=True)
class Grid:
    """A folder with the sources, a recipe for kbuild and a dodo.py for doit."""

    folder: Path
    width: int

    @property
    def nodes(self) -> list[tuple[str, str, str]]:
        """(name, first input, second input) in build order; inputs beginning with `s` are sources."""
        found = []
        for layer in range(LAYERS):
            for p in range(self.width):
                a, b = self._inputs(layer, p)
                found.append((f"n{layer}-{p}", a, b))
        return found

    def _inputs(self, layer: int, p: int) -> tuple[str, str]:
        if layer == 0:
            return f"s{2 * p}", f"s{2 * p + 1}"
        return f"n{layer - 1}-{p}", f"n{layer - 1}-{(p + 1) % self.width}"

    def make(self) -> None:
        """Write everything."""
        (self.folder / "src").mkdir()
        (self.folder / "doit").mkdir()
        for n in range(2 * self.width):
            self.edit(n, f"source {n}\n")
        (self.folder / "recipe.yaml").write_text(self._recipe())
        (self.folder / "doit/dodo.py").write_text(_DODO.format(layers=LAYERS, width=self.width))
        (self.folder / "doit/out").mkdir()
        host_tar(self.folder / "base.tar")

    def edit(self, source: int, text: str) -> None:
        """Write a source."""
        (self.folder / f"src/s{source}").write_text(text)

    def _recipe(self) -> str:
        lines = ["version: 1", "name: grid", "nodes:", "  base: {kind: base, tarball: base.tar}"]
        for name, a, b in self.nodes:
            given = f"sources: {{a: src/{a}, b: src/{b}}}" if a[0] == "s" else f"inputs: {{a: {a}, b: {b}}}"
            lines.append(f"  {name}: {{kind: rule, on: [base], {given}, outputs: [o], command: {COMMAND}}}")
        return "\n".join(lines) + "\n"

    # -- the two sides -------------------------------------------------------------------------

    def kbuild(self) -> dict[str, int]:
        """Run ours as a process; how many nodes it says it built, found in a cache, and left alone."""
        program = str(Path(sys.executable).with_name("kbuild"))
        said = _run([program, "run", "recipe.yaml", "--progress", "plain"], self.folder)
        return {what: int(count) for count, what in re.findall(r"(\d+) (built|from cache|unchanged)", said)}

    def doit(self, *flags: str) -> str:
        """Run the peer as a process; what it said."""
        return _run([str(Path(sys.executable).with_name("doit")), "run", *flags], self.folder / "doit")

    def forget(self) -> None:
        """Both start from nothing."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        for path in (self.folder / "doit").glob(".doit.db*"):
            path.unlink()
        for path in (self.folder / "doit/out").iterdir():
            path.unlink()

    def check(self) -> None:
        """Assert that both sides hold the same result for every node."""
        from kairosbuild.execute import memo

        (file,) = (self.folder / "cache").glob("*/memory/*")
        memory = memo.read(str(file))
        assert memory is not None
        for i, name in enumerate(memory.names):
            if name == "base":
                continue
            digest = memory.node(i)[4][1]["o"][0]
            theirs = hashlib.sha256((self.folder / f"doit/out/{name}").read_bytes()).hexdigest()
            assert digest == f"sha256:{theirs}", f"{name} differs"
        assert len(memory.names) == LAYERS * self.width + 1


_DODO = """
DOIT_CONFIG = {{"verbosity": 0}}
LAYERS, WIDTH = {layers}, {width}


def inputs(layer, p):
    if layer == 0:
        return f"../src/s{{2 * p}}", f"../src/s{{2 * p + 1}}"
    return f"out/n{{layer - 1}}-{{p}}", f"out/n{{layer - 1}}-{{(p + 1) % WIDTH}}"


def task_node():
    for layer in range(LAYERS):
        for p in range(WIDTH):
            a, b = inputs(layer, p)
            out = f"out/n{{layer}}-{{p}}"
            yield {{"name": f"n{{layer}}-{{p}}", "actions": [f"cat {{a}} {{b}} | cksum >{{out}}"],
                    "file_dep": [a, b], "targets": [out]}}
"""


@contextmanager
def grid(width: int) -> Iterator[Grid]:
    """A grid of ten layers in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="grid-") as folder:
        made = Grid(Path(folder), width)
        made.make()
        yield made


def host_tar(target: Path, libraries: Sequence[str] = ()) -> None:
    """A root file system of this machine's own sh, cat, date and cksum: both sides run the very same programs.

    `libraries` are names of more of the C library's own, out of the folder where it is.
    """
    with tarfile.open(target, "w") as tar:
        for name in ("dev", "etc", "in", "out", "proc", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path in _with_libraries(["/bin/sh", "/bin/cat", "/bin/date", "/usr/bin/cksum"], libraries):
            data = Path(path).read_bytes()
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))


def _with_libraries(programs: list[str], more: Sequence[str]) -> list[str]:
    found = dict.fromkeys(programs)
    for program in programs:
        found.update(dict.fromkeys(re.findall(r"(/\S+) \(0x", _run(["ldd", program], Path("/")))))
    libc = next(Path(path) for path in found if "/libc.so" in path)
    return [*found, *(str(libc.with_name(name)) for name in more)]


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout + done.stderr
