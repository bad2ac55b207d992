"""`delta-fetch`: the bytes that come when one package of a 700 MB artifact changed and the last version is at hand.

The artifact is a tar of this machine's own /usr, real programs and texts; in the second version every file of one
package-sized part of it is changed and longer, so that everything behind it moves. The peer fetches whole files.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.harness import Benchmark, Result
from benchmarks.memory_1g import _registry as registry
from benchmarks.transfers import timed
from tests.peers import peer

SIZE, PACKAGE = 700_000_000, 8_000_000

_PUSH = """
import sys
from pathlib import Path
from kairosbuild.core import canonical
from kairosbuild.core.events import Events
from kairosbuild.oci import chunks
from kairosbuild.registry.documents import Item
from kairosbuild.registry.publish import publish
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas
cas = Cas(Path(sys.argv[1]) / "cas")
file = {**cas.put_file(Path(sys.argv[3])).json(), "title": "os.tar", "mediaType": "application/x-tar"}
document = {"schema": 1, "artifactType": "application/x", "files": [file], "annotations": {}}
item = Item("disk", "artifact", cas.put_bytes(canonical.dumps(document)))
publish(Registries().open(sys.argv[2])[0], [item], ["1"], cas=cas, transport=None, events=Events(),
        lister=lambda blob: chunks.dumps(cas.path(blob.digest)))
"""


def run() -> Result:
    """Publish both versions; fetch the second with the first at hand."""
    with (
        tempfile.TemporaryDirectory(prefix="kbuild-delta-") as name,
        registry(Path(name) / "registry") as host,
    ):
        folder, ref = Path(name), f"{host}/bench/disk"
        kbuild = [
            sys.executable,
            "-m",
            "kairosbuild",
            "pull",
            f"{ref}:1-disk",
            "-o",
            str(folder),
            "--json",
            "--progress=none",
        ]
        _send(folder, ref, _tar(folder / "first", changed=False))
        timed(kbuild)
        _send(folder, ref, _tar(folder / "second", changed=True))
        seconds, told = timed(kbuild)

        came = json.loads(told)["fetched"]
        whole = (folder / "os.tar").stat().st_size
        theirs, _ = timed([peer("oras"), "pull", "--plain-http", f"{ref}:1-disk", "-o", str(folder / "oras")])
        same = subprocess.run(["cmp", folder / "os.tar", folder / "oras/os.tar"], check=False).returncode == 0
        assert same, "what was put together is not what oras fetched"
    note = f"{came / whole:.1%} of {whole / 1e6:.0f} MB; {seconds:.1f} s, oras {theirs:.1f} s, on loopback"
    return Result("delta-fetch", "MB", came / 1e6, whole / 1e6, "oras pull", 0.15, note)


def _send(folder: Path, ref: str, file: Path) -> None:
    timed([sys.executable, "-c", _PUSH, str(folder), ref, str(file)])


def _tar(file: Path, *, changed: bool) -> Path:
    done = package = 0
    with tarfile.open(file, "w") as tar:
        for path in _files():
            data = path.read_bytes()
            if done > SIZE // 3 and package < PACKAGE:
                package += len(data)
                if changed:
                    data = b"changed" + data.translate(bytes(reversed(range(256))))
            entry = tarfile.TarInfo(str(path))
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            done += len(data)
            if done > SIZE:
                break
    return file


def _files() -> list[Path]:
    found = []
    for place, folders, names in os.walk("/usr"):
        folders.sort()
        found += [Path(place, name) for name in sorted(names)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


BENCHMARK = Benchmark("delta-fetch", "bytes fetched after one package changed in a 700 MB artifact", run)
