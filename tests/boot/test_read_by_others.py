"""What other vendors' programs say of every artifact of a Debian, out of their own packages in the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("KBUILD_TEST_CACHE") or ROOT / "cache")
PROGRAMS = (
    "coreutils", "cryptsetup-bin", "dash", "diffutils", "dosfstools", "e2fsprogs", "erofs-utils", "gdisk", "grep",
    "gzip", "mtools", "python3", "qemu-utils", "sed", "squashfs-tools", "systemd-ukify", "tar", "xorriso",
)  # fmt: skip
RECIPE = """\
version: 1
name: read
nodes:
  base:   {kind: base, debian: {suite: trixie}}
  system: {kind: packages, on: base, install: [systemd, systemd-sysv, udev, dbus, iproute2]}
  kernel: {kind: kernel, on: base, package: linux-image-cloud-amd64}
  site:   {kind: overlay, source: overlays/site}
  os:     {kind: image, layers: [base, system, kernel, site]}

  raw:      {kind: disk, image: os, firmware: both}
  qcow2:    {kind: disk, image: os, firmware: both, format: qcow2}
  vmdk:     {kind: disk, image: os, firmware: both, format: vmdk}
  vhd:      {kind: disk, image: os, firmware: both, format: vhd}
  gce:      {kind: disk, image: os, firmware: both, format: gce}
  uki:      {kind: uki, image: os}
  iso:      {kind: iso, image: os}
  erofs:    {kind: rootfs, image: os}
  squashfs: {kind: rootfs, image: os, format: squashfs}
  tar:      {kind: rootfs, image: os, format: tar}

  programs: {kind: tools, packages: [PROGRAMS]}
  read:
    kind: rule
    on: [programs]
    command: sh -eu /in/script "$@"
    arguments: [ARGUMENTS]
    sources: {script: script}
    inputs: {raw: raw, qcow2: qcow2, vmdk: vmdk, vhd: vhd, gce: gce, uki: uki, iso: iso, erofs: erofs,
             squashfs: squashfs, tar: tar}
    outputs: [report, inspected, iso]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs' words are: `report`, and what is told of the UKI and the ISO."""
    folder = tmp_path_factory.mktemp("read")
    subprocess.run(["cp", "-r", ROOT / "overlays", folder], check=True)
    script = Path(__file__).with_name("read_by_others.sh")
    (folder / "script").write_bytes(script.read_bytes())
    recipe = RECIPE.replace("PROGRAMS", ", ".join(PROGRAMS))
    kbuild(folder, recipe.replace("ARGUMENTS", ""), "erofs", "-o", "erofs.artifact=notes")
    notes = json.loads((folder / "notes").read_bytes())["annotations"]
    arguments = f'"{notes["root-hash"]}", "{notes["hash-offset"]}"'
    outputs = [word for name in ("report", "inspected", "iso") for word in ("-o", f"read.{name}={name}")]
    kbuild(folder, recipe.replace("ARGUMENTS", arguments), "read", *outputs)
    return folder


def kbuild(folder: Path, recipe: str, *words: str) -> None:
    (folder / "read.yaml").write_text(recipe)
    command = [sys.executable, "-m", "kairosbuild", "run", "read.yaml", *words, "--no-publish"]
    done = subprocess.run(
        [*command, "--cache-dir", CACHE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_every_artifact_is_what_other_programs_read(folder: Path) -> None:
    said = (folder / "report").read_text().splitlines()
    layers = said.count("veritysetup and fsck.erofs: a layer")
    assert layers == said.count("xorriso: a layer as on the disk") >= 4
    assert [line for line in said if "a layer" not in line] == [
        "sgdisk: no problems",
        "fsck.fat: clean",
        "e2fsck: clean",
        "qemu-img: qcow2, the same disk",
        "qemu-img: vmdk, the same disk",
        "qemu-img: vpc, the same disk",
        f"tar: disk.raw, {1 << 30} bytes, no problems for sgdisk",
        "ukify: inspected",
        "fsck.erofs: clean",
        "unsquashfs: reads",
        "tar: the same names",
    ]


def test_a_unified_image_is_what_ukify_inspects(folder: Path) -> None:
    sections = json.loads((folder / "inspected").read_bytes())
    assert {".linux", ".initrd", ".osrel", ".cmdline", ".uname", ".sbat"} <= set(sections)
    assert "kbuild.disk=memory" in sections[".cmdline"]["text"]
    assert "ID=debian" in sections[".osrel"]["text"]


def test_an_iso_starts_both_ways_by_its_own_word(folder: Path) -> None:
    report = (folder / "iso").read_text()
    platforms = [line.split()[6] for line in report.splitlines() if line.startswith("El Torito boot img")]
    assert platforms == ["BIOS", "UEFI"]
    assert "System area summary: MBR" in report and "GPT" in report
    assert "El Torito img path :   1  /boot/grub/core.img" in report
