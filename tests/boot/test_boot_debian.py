"""The recipe's Debian on a machine: its root is layered, verified and read-only, and damage is refused."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from peers import peer

from kairosbuild.boot import qemu

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
MAIN = "from kairosbuild.cli.main import run; run()"
UNIT = """\
[Unit]
Description=What a machine knows of its root
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Before=multi-user.target
[Service]
Type=oneshot
StandardOutput=file:/dev/console
ExecStart=/bin/sh /usr/lib/probe
"""
PROBE = r"""
say() { echo "probe: $*" > /dev/console; }
touch /usr/touched 2>/dev/null && say "usr is writable" || say "usr is read-only"
touch /touched 2>/dev/null && say "root is writable" || say "root is read-only"
for place in etc var home root opt srv; do
    touch /$place/touched && say "/$place is writable"
done
say "motd $(cat /etc/motd | tail -n1)"
say "root $(grep ' / ' /proc/mounts)"
while read -r line; do say "table $line"; done < /run/kbuild/verity
for device in /sys/block/dm-*; do say "device $(cat $device/dm/uuid) ro=$(cat $device/ro)"; done
mkdir -p /run/nested/upper /run/nested/work /run/nested/merged
for lower in /etc /var /usr; do
    written=upperdir=/run/nested/upper,workdir=/run/nested/work
    mount -t overlay -o lowerdir=$lower,$written nested /run/nested/merged &&
        say "an overlay stacks on $lower" && umount /run/nested/merged
done
say end
"""
DRIVEN = """\
version: 1
name: damaged
nodes:
  qemu: {kind: tools, purpose: qemu}
  boot:
    kind: rule
    on: [qemu]
    command: {COMMAND}
    sources: {driver: qemu.sh, disk: disk.raw}
    outputs: [verdict, serial, guest, screen]
    env: {ENV}
"""


def kbuild(workspace: Path, *words: str) -> None:
    command = [sys.executable, "-c", MAIN, *words, "--cache-dir", str(CACHE)]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's disk, raw, with a unit more that prints what the machine knows."""
    workspace = tmp_path_factory.mktemp("debian")
    for folder in ("recipes", "overlays"):
        shutil.copytree(ROOT / folder, workspace / folder, symlinks=True)
    files = {"usr/lib/probe": PROBE, "etc/systemd/system/probe.service": UNIT}
    texts = ", ".join(f"{path}: {{content: {_quoted(text)}}}" for path, text in files.items())
    wants = "etc/systemd/system/multi-user.target.wants/probe.service: ../probe.service"
    more = (
        f"  probe: {{kind: overlay, files: {{{texts}}}, links: {{{wants}}}}}\n"
        "  os: {override: fields, layers: [base, system, kernel, site, probe]}\n"
        "  disk: {override: fields, format: raw}\n"
    )
    recipe = workspace / "recipes/debian.yaml"
    recipe.write_text(recipe.read_text() + more)
    (workspace / "BUILD.yaml").write_text("version: 1\n")
    kbuild(workspace, "run", "recipes/debian.yaml", "disk", "--no-publish", "-o", "disk=disk.raw")
    return workspace / "disk.raw"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("$", "$$") + '"'


def boot(disk: Path, tmp_path: Path, expect: str = "multi-user") -> qemu.Boot:
    """Start this disk as boot-test does, whatever comes of it."""
    if disk.parent != tmp_path:
        (tmp_path / "disk.raw").symlink_to(disk)
    (tmp_path / "qemu.sh").write_bytes(qemu.driver())
    env = qemu.environment(expect=expect, seconds=600)
    command = _quoted(shlex.join(qemu.command(qemu.Machine(), qemu.Medium())))
    listed = ", ".join(f"{name}: {_quoted(value)}" for name, value in env.items())
    (tmp_path / "boot.yaml").write_text(
        DRIVEN.replace("{ENV}", "{" + listed + "}").replace("{COMMAND}", command)
    )
    outputs = ["-o", "boot.verdict=verdict", "-o", "boot.serial=serial"]
    kbuild(tmp_path, "run", "boot.yaml", "boot", "--no-publish", *outputs)
    return qemu.judge((tmp_path / "verdict").read_bytes(), (tmp_path / "serial").read_bytes())


def said(console: str) -> list[str]:
    return [line.partition("probe: ")[2].strip() for line in console.splitlines() if "probe: " in line]


def partition(path: Path, number: int) -> tuple[int, int]:
    """First byte and size of a partition."""
    with path.open("rb") as file:
        file.seek(1024 + 128 * number + 32)
        first, last = struct.unpack("<QQ", file.read(16))
    return first * 512, (last - first + 1) * 512


class Layers:
    """The layers filesystem of a copy of the disk, taken out, changed and put back."""

    def __init__(self, disk: Path, tmp_path: Path) -> None:
        self.disk = tmp_path / "disk.raw"
        subprocess.run(["cp", "--sparse=always", disk, self.disk], check=True)
        self.disk.chmod(0o644)
        self.start, self.size = partition(self.disk, 1)
        self.image = tmp_path / "layers.ext4"
        self._copy(self.disk, self.start, self.image, 0)

    def names(self) -> list[str]:
        """Root hashes, top to base, as the command line has them."""
        start, size = partition(self.disk, 0)
        with self.disk.open("rb") as file:
            file.seek(start)
            text = file.read(size)
        line = text[text.index(b"kbuild.layers=") :].split()[0].decode()
        return [one.partition(":")[0] for one in line.partition("=")[2].split(",")]

    def debugfs(self, command: str, *, write: bool = False) -> str:
        words = [peer("debugfs", "e2fsprogs"), *(["-w"] if write else []), "-R", command, str(self.image)]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def blocks(self, name: str) -> list[int]:
        return [int(word) for word in self.debugfs(f"blocks {name}").split()]

    def flip(self, block: int, at: int = 0) -> None:
        with self.image.open("r+b") as file:
            file.seek(block * 4096 + at)
            byte = file.read(1)
            file.seek(block * 4096 + at)
            file.write(bytes([byte[0] ^ 0xFF]))

    def put_back(self) -> Path:
        self._copy(self.image, 0, self.disk, self.start)
        self.image.unlink()
        return self.disk

    def _copy(self, source: Path, skip: int, target: Path, seek: int) -> None:
        count = self.size >> 20
        words = [
            f"if={source}",
            f"of={target}",
            "bs=1M",
            f"skip={skip >> 20}",
            f"seek={seek >> 20}",
            f"count={count}",
        ]
        subprocess.run(["dd", *words, "conv=notrunc", "status=none"], check=True)


def test_the_root_is_layered_verified_and_read_only(disk, tmp_path):
    layers = Layers(disk, tmp_path)
    names = layers.names()
    went = boot(layers.put_back(), tmp_path)
    assert went.passed, went.why + went.last()
    facts = said(went.console)
    assert facts[-1] == "end"
    assert "root is read-only" in facts
    assert "usr is read-only" in facts
    assert [f for f in facts if f.endswith("is writable")] == [
        f"/{place} is writable" for place in ("etc", "var", "home", "root", "opt", "srv")
    ]
    root = next(f for f in facts if f.startswith("root kbuild / overlay"))
    assert "lowerdir=" + ":".join(f"/run/kbuild/layer/{n}" for n in range(len(names))) in root
    tables = [f for f in facts if f.startswith("table ")]
    assert len(tables) == len(names) >= 5
    for number, name in enumerate(names):
        assert any(
            f"kbuild-{number}:" in t and f"sha256 {name}" in t and "restart_on_corruption" in t
            for t in tables
        )
        assert f"device CRYPT-VERITY-{name}-kbuild-{number} ro=1" in facts
    for place in ("/etc", "/var", "/usr"):
        assert f"an overlay stacks on {place}" in facts


def _refused(went: qemu.Boot) -> None:
    assert not went.passed
    assert "multi-user.target" not in went.console, went.last(60)
    assert went.console.count("Linux version ") == 1
    assert "reboot: Restarting system" in went.console or "reboot: machine restart" in went.console, (
        went.last(60)
    )


@pytest.mark.parametrize("which", [0, -1], ids=["top", "base"])
def test_a_missing_layer_is_refused(disk, tmp_path, which):
    layers = Layers(disk, tmp_path)
    name = layers.names()[which]
    layers.debugfs(f"rm {name}", write=True)
    went = boot(layers.put_back(), tmp_path)
    _refused(went)
    assert f"kbuild: FAILED: layer {name} is not on" in went.console


def test_a_damaged_head_is_refused(disk, tmp_path):
    layers = Layers(disk, tmp_path)
    layers.flip(layers.blocks(layers.names()[-1])[0], 1024)
    went = boot(layers.put_back(), tmp_path)
    _refused(went)
    assert "is corrupted" in went.console


def test_damage_deep_inside_is_refused_when_it_is_read(disk, tmp_path):
    """A byte in most of the base's blocks; the layer itself opens and mounts, what is read from it fails."""
    layers = Layers(disk, tmp_path)
    blocks = layers.blocks(layers.names()[-1])
    for block in blocks[len(blocks) // 8 : len(blocks) * 7 // 8]:
        layers.flip(block, 77)
    went = boot(layers.put_back(), tmp_path)
    _refused(went)
    assert "is corrupted" in went.console
    assert "erofs: (device dm-" in went.console


def test_a_swapped_layer_is_refused(disk, tmp_path):
    """Another layer's bytes under the right name are not the right bytes."""
    layers = Layers(disk, tmp_path)
    names = layers.names()
    small, other = names[1], names[0]
    for target, source in zip(layers.blocks(small)[:2], layers.blocks(other)[:2], strict=False):
        with layers.image.open("r+b") as file:
            file.seek(source * 4096)
            content = file.read(4096)
            file.seek(target * 4096)
            file.write(content)
    _refused(boot(layers.put_back(), tmp_path))
