"""`memory-1g`: the most memory held while a layer of 1 GiB is written and pushed to a registry on loopback.

The peer is what oras-py does on its own: a tar from the standard library, then `push`. Each side runs in a
process of its own, which reports its peak (VmHWM). Afterwards the registry is asked for both blobs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from benchmarks.harness import Benchmark, Result
from tests.peers import find

SIZE = 1 << 30
GOAL = 150.0  # MB, whatever the peer takes
_MB = 1_000_000
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""

_OURS = """
import json, sys
from pathlib import Path
from kairosbuild.core import canonical
from kairosbuild.core.events import Events
from kairosbuild.oci.entry import Entry
from kairosbuild.oci.layer import write_layer
from kairosbuild.registry.documents import Item
from kairosbuild.registry.publish import publish
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas

folder, content, place = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
cas = Cas(folder / "cas")
with cas.writer() as out:
    index = write_layer([(Entry("big", "file", size=content.stat().st_size), content)], out, 0)
    layer = out.commit()
row = {"name": "big", "layer": layer.json(), "index": cas.put_bytes(index).json()}
document = {
    "schema": 1, "platform": "linux/amd64", "epoch": 0, "compression": "none", "layers": [row], "config": {}
}
item = Item("big", "image", cas.put_bytes(canonical.dumps(document)))
publish(Registries().open(place)[0], [item], ["latest"], cas=cas, transport=None, events=Events())
"""

_PEER = """
import json, sys, tarfile
from pathlib import Path
import oras.client
from kairosbuild.core.digest import of_file

folder, content, place = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
file = folder / "layer.tar"
with tarfile.open(file, "w") as tar:
    tar.add(content, "big")
client = oras.client.OrasClient(insecure=True)
client.push(target=f"{place}:latest", files=[str(file)], disable_path_validation=True, quiet=True)
layer = of_file(file)
"""

_REPORT = """
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": int(peak) * 1024, "digest": layer.digest, "size": layer.size}))
"""


def run() -> Result:
    """Measure both sides; each pushes to a repository of its own."""
    with tempfile.TemporaryDirectory(prefix="kbuild-memory-") as name:
        folder = Path(name)
        content = folder / "content"
        _fill(content)
        with _registry(folder / "registry") as host:
            ours = _side(_OURS, folder / "ours", content, f"{host}/ours")
            peer = _side(_PEER, folder / "peer", content, f"{host}/peer")
    note = f"the goal is {GOAL:.0f} MB; 1 GiB of random bytes, uncompressed, docker-registry on loopback"
    return Result("memory-1g", "MB", ours / _MB, peer / _MB, "oras-py push", GOAL * _MB / peer, note)


def _side(program: str, folder: Path, content: Path, place: str) -> float:
    """Peak memory in bytes of one side, once its blob is known to be in the registry."""
    folder.mkdir()
    command = [sys.executable, "-c", program + _REPORT, str(folder), str(content), place]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent.parent)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["size"] > SIZE, told
    host, _, repository = place.partition("/")
    url = f"http://{host}/v2/{repository}/blobs/{told['digest']}"
    with urlopen(Request(url, method="HEAD"), timeout=60) as reply:
        assert int(reply.headers["Content-Length"]) == told["size"], "the registry holds something else"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    return float(told["peak"])


def _fill(file: Path) -> None:
    with file.open("wb") as out:
        for _ in range(SIZE >> 24):
            out.write(os.urandom(1 << 24))


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    program = find("docker-registry")
    assert program, "docker-registry (the Debian package) is not on this machine"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(data=folder / "data", port=port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _wait(port: int) -> None:
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.025)
    raise AssertionError("docker-registry does not answer")


BENCHMARK = Benchmark("memory-1g", "peak memory while a 1 GiB layer is written and pushed", run)
