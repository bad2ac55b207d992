"""A base that brings a package manager, out of Debian's own packages: what is there of Arch and openSUSE in trixie.

Unpacked and not configured, as a tools tree is. It says of itself what the test wants, and holds nothing that its
package manager knows of.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
SHELL = (
    "bash",
    "dash",
    "coreutils",
    "sed",
    "grep",
    "findutils",
    "gawk",
    "tar",
    "gzip",
    "libc-bin",
    "diffutils",
)
RECIPE = """\
version: 1
name: foreign
nodes:
  root: {{kind: tools, packages: [{packages}]}}
"""


def root(packages: tuple[str, ...], files: Mapping[str, bytes | None]) -> bytes:
    """The tar of such a root with these files in it; a folder's content is None. Made once for equal ones."""
    with tempfile.TemporaryDirectory() as folder:
        return _root(Path(folder), packages, tuple(files.items()))


_made: dict[tuple[object, ...], bytes] = {}


def _root(folder: Path, packages: tuple[str, ...], files: tuple[tuple[str, bytes | None], ...]) -> bytes:
    if (packages, files) not in _made:
        _made[packages, files] = _make(folder, packages, dict(files))
    return _made[packages, files]


def _make(folder: Path, packages: tuple[str, ...], files: Mapping[str, bytes | None]) -> bytes:
    (folder / "BUILD.yaml").write_text("version: 1\nrecipes: [foreign.yaml]\n")
    (folder / "foreign.yaml").write_text(RECIPE.format(packages=", ".join((*SHELL, *packages))))
    command = [sys.executable, "-m", "kairosbuild", "run", "foreign.yaml", "-o", "root.layer=root.tar"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--cache-dir", str(CACHE)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": b"root:x:0:\n",
        "usr/bin/awk": b"",
        "usr/bin/sh": b"",
        **files,
    }
    out = io.BytesIO()
    with tarfile.open(folder / "root.tar") as below, tarfile.open(fileobj=out, mode="w") as tar:
        for member in below:
            if member.name.rstrip("/") not in shown:
                tar.addfile(member, below.extractfile(member) if member.isfile() else None)
        for path, content in shown.items():
            entry = tarfile.TarInfo(path)
            if path in ("usr/bin/awk", "usr/bin/sh"):
                entry.type, entry.linkname = tarfile.SYMTYPE, "gawk" if path.endswith("awk") else "dash"
            elif content is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            else:
                entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content) if content else None)
    return out.getvalue()
