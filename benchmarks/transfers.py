"""Moving an image to and from a registry on loopback: ours beside oras, skopeo, crane and plain oras-py.

The same layers for everybody (random bytes, gzip-framed), a fresh docker-registry for each push, and each side
a process of its own, interpreter start included. Rounds are interleaved; the best of them counts, since the
machine is shared. Ours verifies every byte in both directions; our peak memory (VmHWM) is in the note.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Result
from benchmarks.memory_1g import _registry as registry
from tests.peers import peer

MIB = 1 << 20
ROUNDS = int(os.environ.get("KBUILD_BENCH_ROUNDS", "3"))
ROOT = Path(__file__).parent.parent
_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_MOST_MB = 100

_REPORT = """
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) * 1024)
"""
_PUSH = """
import sys
from pathlib import Path
from kairosbuild.core.events import Events
from kairosbuild.core.digest import Blob
from kairosbuild.registry.documents import Item, Sent
from kairosbuild.registry.publish import publish
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas
cas = Cas(Path(sys.argv[1]))
item = Item("os", "image", Blob(sys.argv[3], int(sys.argv[4])))
publish(Registries().open(sys.argv[2])[0], [item], ["latest"], cas=cas, transport=lambda b, _: Sent(b), events=Events())
"""
_PULL = """
import sys
from pathlib import Path
from kairosbuild.core.events import Events
from kairosbuild.registry.fetch import download
from kairosbuild.registry.manifests import resolve
from kairosbuild.registry.registries import Registries
from kairosbuild.store.cas import Cas
target, _ = Registries().open(sys.argv[2])
image = resolve(target, "latest", "linux/amd64")
download(target, image.blobs, Cas(Path(sys.argv[1])), Events())
"""
_ORAS_PY_PUSH = """
import sys, glob, oras.client
client = oras.client.OrasClient(insecure=True)
client.push(target=f"{sys.argv[2]}:latest", files=sorted(glob.glob(sys.argv[1] + "/blobs/sha256/*")), disable_path_validation=True, quiet=True)
"""
_ORAS_PY_PULL = """
import sys, oras.client
oras.client.OrasClient(insecure=True).pull(target=f"{sys.argv[2]}:latest", outdir=sys.argv[1])
"""


@dataclass(frozen=True)
class Sample:
    """The same image as a layout and in a store."""

    layout: Path
    cas: Path
    document: tuple[str, int]


def sample(folder: Path, count: int, size: int) -> Sample:
    """An image of `count` layers of `size` bytes."""
    from kairosbuild.core import canonical
    from kairosbuild.core.events import Events
    from kairosbuild.registry.documents import Item, Sent
    from kairosbuild.registry.publish import publish
    from kairosbuild.registry.registries import Registries
    from kairosbuild.store.cas import Cas

    cas = Cas(folder / "cas")
    rows = []
    for number in range(count):
        with cas.writer() as out:
            squeeze = zlib.compressobj(0, zlib.DEFLATED, 31)
            for _ in range(size // MIB):
                out.write(squeeze.compress(os.urandom(MIB)))
            out.write(squeeze.flush())
            rows.append({"name": f"n{number}", "layer": out.commit().json()})
    document = {
        "schema": 1, "platform": "linux/amd64", "epoch": 0, "compression": "gzip", "layers": rows, "config": {},
    }  # fmt: skip
    blob = cas.put_bytes(canonical.dumps(document))
    layout, _ = Registries().open(f"oci:{folder}/layout")
    how = {"cas": cas, "transport": lambda layer, _: Sent(layer), "events": Events()}
    publish(layout, [Item("os", "image", blob)], ["latest"], **how)  # type: ignore[arg-type]
    return Sample(folder / "layout", folder / "cas", (blob.digest, blob.size))


Command = Callable[[Sample, str, Path], list[str]]
PUSH: Mapping[str, Command] = {
    "ours": lambda s, ref, _: [sys.executable, "-c", _PUSH + _REPORT, str(s.cas), ref, s.document[0], str(s.document[1])],
    "oras": lambda s, ref, _: [peer("oras"), "cp", "--from-oci-layout", "--to-plain-http", f"{s.layout}:latest", f"{ref}:latest"],
    "skopeo": lambda s, ref, _: [peer("skopeo"), "copy", "--dest-tls-verify=false", f"oci:{s.layout}:latest", f"docker://{ref}:latest"],
    "crane": lambda s, ref, _: [peer("crane", "crane", "sid"), "push", "--insecure", str(s.layout), f"{ref}:latest"],
    "oras-py": lambda s, ref, _: [sys.executable, "-c", _ORAS_PY_PUSH, str(s.layout), ref],
}  # fmt: skip
PULL: Mapping[str, Command] = {
    "ours": lambda _, ref, into: [sys.executable, "-c", _PULL + _REPORT, str(into), ref],
    "oras": lambda _, ref, into: [peer("oras"), "cp", "--from-plain-http", "--to-oci-layout", f"{ref}:latest", f"{into}:latest"],
    "skopeo": lambda _, ref, into: [peer("skopeo"), "copy", "--src-tls-verify=false", f"docker://{ref}:latest", f"oci:{into}:latest"],
    "crane": lambda _, ref, into: [peer("crane", "crane", "sid"), "pull", "--insecure", "--format=oci", f"{ref}:latest", str(into)],
    "oras-py": lambda _, ref, into: [sys.executable, "-c", _ORAS_PY_PULL, str(into), ref],
}  # fmt: skip


def timed(command: list[str]) -> tuple[float, bytes]:
    """Seconds of a command that succeeds, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, (command[:3], done.stderr[-2000:])
    return seconds, done.stdout


def push(name: str, count: int, size: int) -> Result:
    """Everybody pushes into a fresh registry."""
    with tempfile.TemporaryDirectory(prefix="kbuild-push-") as folder:
        made = sample(Path(folder), count, size)
        best, peak = _rounds(lambda who, place: _pushed(who, made, place), list(PUSH), Path(folder))
    return _result(name, best, peak, f"push of {count} × {size // MIB} MiB")


def _pushed(who: str, made: Sample, place: Path) -> tuple[float, bytes]:
    with registry(place / "registry") as host:
        return timed(PUSH[who](made, f"{host}/bench/image", place))


def pull(name: str, count: int, size: int) -> Result:
    """Everybody pulls the same image from one registry."""
    with tempfile.TemporaryDirectory(prefix="kbuild-pull-") as folder, registry(Path(folder) / "r") as host:
        made = sample(Path(folder), count, size)
        ref = f"{host}/bench/image"
        timed(PUSH["oras"](made, ref, Path(folder)))
        timed(PUSH["oras-py"](made, f"{ref}-py", Path(folder)))
        refs = {who: f"{ref}-py" if who == "oras-py" else ref for who in PULL}
        best, peak = _rounds(
            lambda who, place: timed(PULL[who](made, refs[who], place / "into")), list(PULL), Path(folder)
        )
    return _result(name, best, peak, f"pull of {count} × {size // MIB} MiB")


def _rounds(
    side: Callable[[str, Path], tuple[float, bytes]], names: list[str], folder: Path
) -> tuple[dict[str, float], int]:
    best: dict[str, float] = {}
    peak = 0
    for number in range(ROUNDS):
        for who in names:
            place = folder / f"{who}-{number}"
            place.mkdir()
            seconds, told = side(who, place)
            best[who] = min(seconds, best.get(who, seconds))
            if who == "ours":
                peak = max(peak, int(told.split()[-1]))
            _empty(place)
    return best, peak


def _empty(place: Path) -> None:
    """Give the space back, and keep the files: ext4 passes over every file lately removed to make a new one."""
    for file in place.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600)
            os.truncate(file, 0)


def _result(name: str, best: Mapping[str, float], peak: int, what: str) -> Result:
    others = {who: seconds for who, seconds in best.items() if who != "ours"}
    fastest = min(others, key=lambda who: others[who])
    shown = ", ".join(
        f"{who} {seconds:.2f}" for who, seconds in sorted(others.items(), key=lambda row: row[1])
    )
    assert peak <= _MOST_MB * 1_000_000, f"{peak} bytes of memory"
    note = f"{what}; {shown}; our peak memory {peak / 1e6:.0f} MB"
    return Result(name, "s", best["ours"], others[fastest], fastest, 1.15, note)


def noop(name: str) -> Result:
    """`kbuild push` again, when all is there, its recipe unchanged; and the others with the same image."""
    few, many = (_noop(count) for count in (1, 200))
    note = "; ".join(f"{count} layers: {_seconds(best)}" for count, best in ((1, few), (200, many)))
    return Result(
        name, "ms", 1000 * many["ours"], 1000 * many["crane"], "crane", 2.0, f"{note}; process start included"
    )


def _noop(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="kbuild-noop-") as name, registry(Path(name) / "r") as host:
        folder = Path(name)
        kbuild = [sys.executable, "-m", "kairosbuild", "push", str(_recipe(folder, count)), f"{host}/ours"]
        timed(kbuild)
        skopeo, bare = peer("skopeo"), ["--src-tls-verify=false"]
        timed([skopeo, "copy", *bare, f"docker://{host}/ours:latest", f"oci:{folder}/layout:latest"])
        made = Sample(folder / "layout", folder, ("", 0))
        commands = {who: PUSH[who](made, f"{host}/{who}", folder) for who in ("crane", "oras", "skopeo")}
        commands["ours"] = kbuild
        for command in commands.values():
            timed(command)
        return {who: min(timed(command)[0] for _ in range(ROUNDS * 3)) for who, command in commands.items()}


def _recipe(folder: Path, count: int) -> Path:
    """A recipe of one image, of so many layers of 1 MiB."""
    nodes = {f"n{number}": {"kind": "overlay", "source": f"files/{number}"} for number in range(count)}
    for number in range(count):
        place = folder / f"files/{number}"
        place.mkdir(parents=True)
        (place / f"f{number}").write_bytes(os.urandom(MIB))
    recipe = {
        "version": 1, "name": "noop",
        "nodes": {**nodes, "os": {"kind": "image", "layers": list(nodes)}}, "publish": {"targets": ["os"]},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "BUILD.yaml").write_text("version: 1\n")
    return folder / "recipe.yaml"


def _seconds(best: Mapping[str, float]) -> str:
    return ", ".join(f"{who} {best[who]:.3f}" for who in sorted(best, key=lambda who: best[who]))
